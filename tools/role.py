"""Starts one process of a role on its host: with the role's variables, secrets read here, once its folders are seen.

    python -m tools.role [--variable NAME=VALUE] [--need PATH] [--towards HOST] -- COMMAND...

`tools.launch` writes this command line. VALUE may be `env:NAME` or `file:/PATH`. In the command, {address} stands for
this host's address: WEIR_ADDRESS where it is set, else the one by which it reaches HOST. Imports only the standard
library, so that it starts in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.command_line import CommandParser

#: as `learner_jax.runtime.CANNOT_HEAL_STATUS`: the same start would fail again
_CANNOT_HEAL = os.EX_CONFIG
_ADDRESS = "{address}"
_OWN_ADDRESS = "WEIR_ADDRESS"
_ANY_PORT = 9
_MAX_SECRET_BYTES = 2**16


class RoleError(Exception):
    """This host can't start the role; says why."""


def value_of(reference: str, environment: Mapping[str, str]) -> str:
    """What a variable is set to: the value itself, or what `env:NAME` or `file:/PATH` stands for.

    Raises:
      RoleError: it is not there; the message names the reference, never a value.
    """
    kind, _, place = reference.partition(":")
    if kind == "env":
        if not environment.get(place):
            raise RoleError(f"{reference}: expected the environment variable {place} to be set where the role starts")
        return environment[place]
    if kind == "file" and place.startswith("/"):
        try:
            with open(place, "rb") as file:
                text = file.read(_MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise RoleError(f"{reference}: can't be read: {error.strerror}") from None
        value = text.decode(errors="replace").rstrip("\r\n")
        if not value or len(text) > _MAX_SECRET_BYTES or "\0" in value:
            raise RoleError(f"{reference}: expected one text of at most {_MAX_SECRET_BYTES} bytes")
        return value
    return reference


def own_address(towards: str, environment: Mapping[str, str]) -> str:
    """The address of this host: as WEIR_ADDRESS says, else that by which it reaches the host `towards`.

    Raises:
      RoleError: that host's name is not known here, or there is no way to it.
    """
    if given := environment.get(_OWN_ADDRESS):
        return given
    try:
        family, _, _, _, place = socket.getaddrinfo(towards, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # asks for the way, and sends nothing
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RoleError(
            f"there is no way to the run's first host {towards!r}: {error.strerror or error}; set {_OWN_ADDRESS} in "
            f"the role's variables"
        ) from None


def prepared(
    arguments: argparse.Namespace, environment: Mapping[str, str], *, host: str
) -> tuple[list[str], dict[str, str]]:
    """The command as it is run here, and its environment.

    Raises:
      RoleError: a variable or the address is not known, or this host does not see a folder.
    """
    if missing := [path for path in arguments.need if not Path(path).exists()]:
        raise RoleError(
            f"host {host} does not see {', '.join(missing)}: mount the shared folder there under the same path"
        )
    given = dict(pair.partition("=")[::2] for pair in arguments.variable)
    told = dict(environment) | {name: value_of(reference, environment) for name, reference in given.items()}
    command = list(arguments.command)
    if any(_ADDRESS in part for part in command):
        address = own_address(arguments.towards, told)
        command = [part.replace(_ADDRESS, address) for part in command]
    return command, told


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="python -m tools.role", description=__doc__.splitlines()[0])
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="for the command")
    parser.add_argument("--need", action="append", default=[], metavar="PATH", help="that this host must see")
    parser.add_argument("--towards", default="127.0.0.1", metavar="HOST", help="the run's first host")
    parser.add_argument("command", nargs="+", help="program and arguments, after --")
    arguments = parser.parse_args(argv)
    try:
        command, environment = prepared(arguments, os.environ, host=socket.gethostname())
        os.execvpe(command[0], command, environment)
    except RoleError as error:
        text = str(error)
    except OSError as error:
        text = f"host {socket.gethostname()} can't start {arguments.command[0]}: {error.strerror}"
    print(f"error: {ascii(text)[1:-1]}", file=sys.stderr)
    raise SystemExit(_CANNOT_HEAL)


if __name__ == "__main__":
    main()

"""How `tools.registry` signs: entries when they are registered or later, and folders that leave the registry."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from serving_bridge.registry import (
    PASSWORD_VARIABLE,
    Registry,
    Standing,
    check_private_key,
    read_trusted_keys,
    sign_folder,
    verify_folder,
)


def add_sign_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    one = command("sign", "sign entries, once every byte of them has been hashed", acts=True)
    one.add_argument("entries", nargs="+", metavar="ENTRY", help="number or alias")
    one.add_argument(
        "--key", type=Path, required=True, metavar="PEM", help=f"private key; its password: {PASSWORD_VARIABLE}"
    )


def sign(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    for name in arguments.entries:
        number = registry.index.aliases.resolve(arguments.namespace, name)
        _sign(registry, registry.index.standing(arguments.namespace, number), arguments.key, arguments.actor, console)
    return 0


def check_before(arguments: argparse.Namespace) -> None:
    """What `add` and `import` refuse before anything is registered: a key that can't sign, a folder nobody signed.

    Raises:
      RegistryError: one of these.
    """
    if arguments.sign_with is not None:
        check_private_key(arguments.sign_with, password=_password())
    elif arguments.command == "import" and arguments.trusted_key is not None:
        verify_folder(arguments.model, read_trusted_keys(arguments.trusted_key))


def sign_new(registry: Registry, arguments: argparse.Namespace, number: int, console: Console) -> None:
    """Signs an entry that was just registered, where a key is given."""
    if arguments.sign_with is not None:
        standing = registry.index.standing(arguments.namespace, number)
        _sign(registry, standing, arguments.sign_with, arguments.actor, console)


def sign_exported(arguments: argparse.Namespace) -> None:
    """Signs an exported folder, where a key is given."""
    if arguments.sign_with is not None:
        sign_folder(arguments.out, arguments.sign_with, password=_password())


def _sign(registry: Registry, standing: Standing, key: Path, actor: str, console: Console) -> None:
    name = registry.sign(standing, key, password=_password(), actor=actor)
    console.print(f"{standing.entry.id} is signed by key {name[:12]}")


def _password() -> str | None:
    return os.environ.get(PASSWORD_VARIABLE)

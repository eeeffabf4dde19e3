"""One sandbox: started, asked one thing, and killed with all that runs in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import select
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Protocol

from learner_jax.runtime import WeirError
from rewards.code.sandbox.control_groups import Group
from rewards.code.sandbox.interpreter import Interpreter
from rewards.code.sandbox.limits import Limits, Report
from rewards.code.sandbox.system_calls import answer_filter

#: waits until its process is in its control groups, and becomes the command
_ENTER = 'read -r go && exec "$@"'
_GO = b"go\n"
_MAX_REPORT_BYTES = 1 << 20
_MAX_SAID_BYTES = 2000
_CHUNK_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_GONE_S = 5.0
_GRACE_S = 1.0


class Tier(Protocol):
    """How a sandbox is started.

    Attributes:
      filter: of system calls, read by the command from a descriptor; empty where it has none.
      inner_filter: the same, set by the first process inside; empty where it needs none.
      unknown_limits: resource limits that its kernel does not let a program lower.
      own_processes, own_bytes: that the tier needs itself, in the sandbox's control group.
    """

    @property
    def interpreter(self) -> Interpreter: ...

    @property
    def filter(self) -> bytes: ...

    @property
    def inner_filter(self) -> bytes: ...

    @property
    def unknown_limits(self) -> tuple[str, ...]: ...

    @property
    def own_processes(self) -> int: ...

    @property
    def own_bytes(self) -> int: ...

    @property
    def name(self) -> str: ...

    def command(self, limits: Limits, filter_descriptor: int, name: str) -> list[str]:
        """The command line of a sandbox; `name` is no other's."""

    def ended(self, name: str) -> None:
        """Removes what is left of a sandbox whose processes are gone."""

    def close(self) -> None: ...


class BoxEnded(WeirError):
    """A sandbox ended before it said what it was asked for."""


class Box:
    """A sandbox on its way up. The thread that makes it must outlive it: the sandbox dies with that thread.

    Args:
      user: that it runs as; None for that of this process.
    """

    def __init__(self, tier: Tier, limits: Limits, group: Group, user: int | None, deadline_s: float) -> None:
        self._group, self._tier = group, tier
        self._name = f"box-{secrets.token_hex(8)}"
        self._has_asked = False
        inside_in, self._in = os.pipe()
        self._out, inside_out = os.pipe()
        said, inside_said = os.pipe()
        filter_out, filter_in = os.pipe()
        os.write(filter_in, tier.filter)
        os.close(filter_in)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _ENTER, "sh", *tier.command(limits, filter_out, self._name)],
                stdin=inside_in,
                stdout=inside_out,
                stderr=inside_said,
                env={},
                cwd="/",
                pass_fds=(filter_out,),
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else (),
            )
        finally:
            for descriptor in (inside_in, inside_out, inside_said, filter_out):
                os.close(descriptor)
        self._said = said
        group.take(self._process.pid)
        os.set_blocking(self._in, False)
        setup = {
            "limits": _known(limits.of_answer(deadline_s), tier),
            "outer_limits": _known(limits.of_tests(deadline_s), tier),
            "outer_filter": tier.inner_filter.hex(),
            "filter": answer_filter(platform.machine()).hex(),
        }
        self._waiting = bytearray(_GO + tier.interpreter.program + _framed(json.dumps(setup).encode()))
        self._push()

    def wait(self, until: float) -> None:
        """Until it is ready for its request.

        Raises:
          BoxEnded: it is not by that time (of the monotonic clock): says what the programs said.
        """
        try:
            if self._receive(until) == b"ready":
                return
            raise BoxEnded("it didn't say that it is ready")
        except BoxEnded as error:
            said = self._what_it_said()
            raise BoxEnded(f"{error}{': ' if said else ''}{said}") from None

    def ask(self, request: Mapping[str, Any], deadline_s: float) -> Report:
        """Has a request judged. One only: afterwards the box is to be killed.

        Raises:
          BoxEnded: it ended, or wrote what is no report.
        """
        if self._has_asked:
            raise ValueError("a sandbox judges one answer")
        self._has_asked = True
        nonce = secrets.token_hex(16)
        until = time.monotonic() + deadline_s + _GRACE_S
        self._waiting += _framed(json.dumps({**request, "nonce": nonce, "deadline_s": deadline_s}).encode())
        reply = self._receive(until)
        try:
            report = json.loads(reply)
        except (ValueError, RecursionError):
            raise BoxEnded("what it wrote is no report") from None
        # The report is the tests' only if it holds what only their process was told.
        if not isinstance(report, dict) or not secrets.compare_digest(
            str(report.get("nonce")).encode(), nonce.encode()
        ):
            raise BoxEnded("what it wrote is no report of this request")
        return Report(tuple(report["outcomes"]))

    def kill(self) -> None:
        """Ends every process of it, and waits until the last one is gone."""
        self._process.kill()
        self._process.wait(_GONE_S)
        os.close(self._in)
        _drain(self._out, time.monotonic() + _GONE_S)
        for descriptor in (self._out, self._said):
            os.close(descriptor)
        self._group.remove()
        self._tier.ended(self._name)

    def _receive(self, until: float) -> bytes:
        length = int.from_bytes(self._read(4, until), "big")
        if length > _MAX_REPORT_BYTES:
            raise BoxEnded(f"it wrote {length} bytes, allowed are {_MAX_REPORT_BYTES}")
        return self._read(length, until)

    def _read(self, length: int, until: float) -> bytes:
        """Reads, and writes meanwhile what it waits for."""
        parts = bytearray()
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        while len(parts) < length:
            if self._waiting:
                poll.register(self._in, select.POLLOUT)
            left = until - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not ready:
                raise BoxEnded("it took too long")
            if self._in in ready and not self._push():
                poll.unregister(self._in)
            if self._out in ready:
                chunk = os.read(self._out, min(length - len(parts), _CHUNK_BYTES))
                if not chunk:
                    raise BoxEnded("its processes ended")
                parts += chunk
        return bytes(parts)

    def _push(self) -> bool:
        """Writes what fits into the pipe; whether something is left that can be written."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self._in, memoryview(self._waiting)[:_PIPE_BYTES].tobytes())]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._waiting.clear()
        return False

    def _what_it_said(self) -> str:
        with contextlib.suppress(OSError):
            os.set_blocking(self._said, False)
            return os.read(self._said, _MAX_SAID_BYTES).decode("utf-8", "replace").strip()
        return ""


def _known(limits: Mapping[str, int], tier: Tier) -> dict[str, int]:
    return {name: value for name, value in limits.items() if name not in tier.unknown_limits}


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _drain(descriptor: int, until: float) -> None:
    """Until all who could write to a pipe are gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := until - time.monotonic()) > 0 and poll.poll(left * 1000):
        if not os.read(descriptor, _CHUNK_BYTES):
            return

"""A verifier that does what it is told, as a stand-in for one that an answer has taken over."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_calls = 0


def _result_pipe() -> int:
    """The only descriptor above standard error that can be written to: where the child's result goes."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if os.write(descriptor, b"") == 0:
                return descriptor
    raise RuntimeError("no pipe")


def _write_raw(text: str, times: int = 1) -> None:
    out = _result_pipe()
    for _ in range(times):
        data = text.encode()
        while data:
            data = data[os.write(out, data) :]
    os._exit(0)


def _count(_: Any) -> float:
    global _calls
    _calls += 1
    return float(_calls)


def _secret(_: Any) -> float:
    """1 if anything of the owner's environment can be found: in ours, in /proc, or in the memory of the parent."""
    if any("WEIR_SECRET" in name or "PG" in name for name in os.environ):
        return 1.0
    for pid in ("self", str(os.getppid()), "1"):
        with contextlib.suppress(OSError):
            if b"WEIR_SECRET" in Path(f"/proc/{pid}/environ").read_bytes():
                return 1.0
    return 0.0


def _fork(_: Any) -> float:
    for _index in range(20):
        if os.fork() == 0:
            while True:
                time.sleep(1)
    return 1.0


def _connect(address: Any) -> float:
    socket.create_connection(tuple(address), timeout=2).close()
    return 1.0


def _trace(_: Any) -> float:
    if ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return 1.0


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return 1.0


def _raise(text: str) -> float:
    raise RuntimeError(text)


def _ok(value: Any) -> float:
    return float(value)


_DEEDS: dict[str, Callable[[Any], Any]] = {
    "score": _ok,
    "count": _count,
    "secret": _secret,
    "fork": _fork,
    "connect": _connect,
    "trace": _trace,
    "sleep": _sleep,
    "spin": lambda _: float(sum(iter(lambda: 1, 0))),
    "exit": os._exit,
    "sys_exit": sys.exit,
    "raise": _raise,
    "memory": lambda size: len(bytearray(size)),
    "raw": _write_raw,
    "giant": lambda _: _write_raw("x" * 65536, 2000),
    "write": lambda path: Path(path).write_text("x"),
    "read": lambda path: float(len(Path(path).read_text())),
    "delete": lambda path: os.unlink(path),
    "kill_parent": lambda _: os.kill(os.getppid(), signal.SIGKILL),
    "kill_group": lambda _: os.kill(0, signal.SIGKILL),
    "program": lambda path: float(os.system(f"touch {path}") != 0),
}


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    if settings.get("broken"):
        raise RuntimeError("no such verifier")

    def score(request: Mapping[str, Any]) -> dict[str, Any]:
        return {"score": _DEEDS[request["deed"]](request.get("with"))}

    return score

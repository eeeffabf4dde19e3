"""The process that scores answers: it loads a verifier once, then forks a confined child for every single answer.

The child sees one request, writes one JSON text into a pipe of its own and is gone, so that an answer which takes its
verifier over can spoil its own verdict and nothing else. The parent of these children reads no request and parses no
result: it forks, waits until the deadline, kills, and passes bounded bytes on. Nothing is pickled in any direction.

A frame is a header (one byte that says what it is, four that give the length) and a payload. Requests also carry the
deadline. `rewards.sandbox.killable_pool` speaks the other end.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from rewards.sandbox import confinement

HEADER = struct.Struct(">cI")
DEADLINE = struct.Struct(">d")
#: what a frame from this process is
READY, BROKEN, RESULT, LATE, DIED, TOO_LONG = b"R", b"B", b"V", b"L", b"D", b"T"

MAX_REQUEST_BYTES = 32 << 20
MAX_RESULT_BYTES = 64 << 10
_MEMORY_BYTES = 3 << 30
_MAX_ERROR_CHARACTERS = 500

Scorer = Callable[[Any], dict[str, Any]]


def main() -> None:
    """Serves requests on the socket that is descriptor 0 until its other end is closed."""
    # Control-C reaches the whole foreground group; this process ends with its owner's end of the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    os.close(null)
    try:
        start = json.loads(_receive(link, HEADER.unpack(_receive(link, HEADER.size))[1]))
        module = importlib.import_module(start["module"])
        score: Scorer = module.create(start["settings"])
        folders = confinement.library_folders()
        state = _self_test(folders)
        if state and start["confined"]:
            raise confinement.ConfinementError(state)
    except BaseException as error:  # noqa: BLE001  (told to the process that started this one)
        _send(link, BROKEN, _said(error).encode())
        return
    gc.collect()
    gc.freeze()
    _send(link, READY, json.dumps({"confinement": state or "full"}).encode())
    while True:
        try:
            length = HEADER.unpack(_receive(link, HEADER.size))[1]
            (deadline_s,) = DEADLINE.unpack(_receive(link, DEADLINE.size))
            request = _receive(link, length)
        except EOFError:
            return
        work = partial(_score, score, request)
        _send(link, *_in_child(link, work, deadline_s, folders, is_full=not state))


def _in_child(
    link: socket.socket, work: Callable[[int], None], deadline_s: float, folders: tuple[str, ...], *, is_full: bool
) -> tuple[bytes, bytes]:
    """Runs `work` in a confined child; returns what became of it and what it wrote."""
    until = time.monotonic() + deadline_s
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(link, work, receiving, sending, deadline_s, folders, is_full)
    os.close(sending)
    kind, written = RESULT, bytearray()
    poll = select.poll()
    poll.register(receiving, select.POLLIN)
    poll.register(link, select.POLLRDHUP)
    while True:
        events = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        if not events or any(descriptor == link.fileno() for descriptor, _ in events):
            kind = LATE
            break
        if not (chunk := os.read(receiving, 65536)):
            break
        written += chunk
        if len(written) > MAX_RESULT_BYTES:
            kind = TOO_LONG
            break
    os.close(receiving)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if kind == RESULT and not written:
        return DIED, str(status).encode()
    return kind, bytes(written) if kind == RESULT else b""


def _be_child(
    link: socket.socket,
    work: Callable[[int], None],
    receiving: int,
    sending: int,
    deadline_s: float,
    folders: tuple[str, ...],
    is_full: bool,
) -> NoReturn:
    try:
        confinement.die_with_parent()
        os.close(receiving)
        link.close()
        confinement.limit_resources(memory_bytes=_MEMORY_BYTES, cpu_s=math.ceil(deadline_s) + 1)
        if is_full:
            confinement.seal(folders)
        work(sending)
    finally:
        os._exit(0)


def _score(score: Scorer, request: bytes, out: int) -> None:
    try:
        payload = json.dumps(score(json.loads(request)), allow_nan=False).encode()
    except BaseException as error:  # noqa: BLE001  (SystemExit included: whatever a verifier raises is its error)
        payload = json.dumps({"error": _said(error)}).encode()
    _write(out, payload)


def _write(out: int, payload: bytes) -> None:
    while payload:
        payload = payload[os.write(out, payload) :]


def _self_test(folders: tuple[str, ...]) -> str:
    """Tries in a child what no child may be able to do; returns what is missing or was not refused."""
    if why := confinement.missing():
        return why
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kind, said = _in_child(theirs, _attack, 30.0, folders, is_full=True)
    if kind != RESULT:
        return f"the self-test of the confinement ended with {kind.decode()} {said.decode(errors='replace')}"
    return "" if said == b"refused" else f"the confinement didn't refuse: {said.decode(errors='replace')}"


def _attack(out: int) -> None:
    attempts: dict[str, Callable[[], object]] = {
        "reading /proc/self/environ": lambda: os.open("/proc/self/environ", os.O_RDONLY),
        "reading /etc/passwd": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "writing a file": lambda: os.open(f"/tmp/weir-{os.getpid()}", os.O_WRONLY | os.O_CREAT),
        "a socket": socket.socket,
        "another process": os.fork,
        "a signal to the parent": lambda: os.kill(os.getppid(), 0),
        "running a program": lambda: os.execv("/bin/true", ["true"]),
    }
    got = []
    for name, attempt in attempts.items():
        try:
            attempt()
            got.append(name)
        except OSError:
            continue
    _write(out, ", ".join(got).encode() or b"refused")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS]


def _receive(link: socket.socket, size: int) -> bytes:
    if size > MAX_REQUEST_BYTES:
        raise EOFError
    parts = bytearray()
    while len(parts) < size:
        chunk = link.recv(min(size - len(parts), 1 << 20))
        if not chunk:
            raise EOFError
        parts += chunk
    return bytes(parts)


def _send(link: socket.socket, kind: bytes, payload: bytes) -> None:
    link.sendall(HEADER.pack(kind, len(payload)) + payload)

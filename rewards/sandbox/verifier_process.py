"""The process that scores answers: it loads a verifier once, then forks a confined child for every single answer.

The child sees one request, writes one JSON text into a pipe of its own and is gone, so that an answer which takes its
verifier over can spoil its own verdict and nothing else. The parent of these children reads no request and parses no
result: it forks, waits until the deadline, kills, and passes bounded bytes on. Nothing is pickled in any direction.

A frame is a header (one byte that says what it is, four that give the length) and a payload. Requests also carry the
deadline. `rewards.sandbox.killable_pool` speaks the other end.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

from learner_jax.runtime import WeirError, raised
from rewards.sandbox import confinement

HEADER = struct.Struct(">cI")
DEADLINE = struct.Struct(">d")
#: what a frame from this process is
READY, BROKEN, RESULT, LATE, DIED, TOO_LONG = b"R", b"B", b"V", b"L", b"D", b"T"

MAX_REQUEST_BYTES = 32 << 20
MAX_RESULT_BYTES = 64 << 10
_MEMORY_BYTES = 3 << 30
_MAX_START_ERROR_CHARACTERS = 4000

Scorer = Callable[[Any], dict[str, Any]]
#: What a child that scores an answer is kept from. "wanted": as much as the machine can; "required": everything, or
#: nothing is scored; "none": nothing, for a verifier that needs files, network or programs.
Confinement = Literal["required", "wanted", "none"]


@dataclass(frozen=True)
class _Walls:
    """What a child is kept from.

    Attributes:
      limited: memory, processor time, files and processes have limits.
      sealed: the system calls and the files that it needs are all that it has.
      folders: that a sealed child may read.
    """

    limited: bool
    sealed: bool
    folders: tuple[str, ...] = ()


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
        state, walls = _walls(start["confinement"])
    except BaseException as error:  # noqa: BLE001  (told to the process that started this one)
        said = str(error) if isinstance(error, WeirError) else raised(error)
        _send(link, BROKEN, said[:_MAX_START_ERROR_CHARACTERS].encode(errors="replace"))
        return
    gc.collect()
    gc.freeze()
    _send(link, READY, json.dumps({"confinement": state}).encode())
    while True:
        try:
            length = HEADER.unpack(_receive(link, HEADER.size))[1]
            (deadline_s,) = DEADLINE.unpack(_receive(link, DEADLINE.size))
            request = _receive(link, length)
        except EOFError:
            return
        work = partial(_score, score, request)
        _send(link, *_in_child(link, work, deadline_s, walls))


def _walls(wanted: Confinement) -> tuple[str, _Walls]:
    """What children are kept from, in words and as it is done."""
    if wanted == "none":
        return "none", _Walls(limited=False, sealed=False)
    full = _Walls(limited=True, sealed=True, folders=confinement.library_folders())
    lacks = _self_test(full)
    if lacks and wanted == "required":
        raise confinement.ConfinementError(lacks)
    return (lacks, _Walls(limited=True, sealed=False)) if lacks else ("full", full)


def _in_child(
    link: socket.socket, work: Callable[[int], None], deadline_s: float, walls: _Walls
) -> tuple[bytes, bytes]:
    """Runs `work` in a child; returns what became of it and what it wrote."""
    until = time.monotonic() + deadline_s
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(link, work, receiving, sending, deadline_s, walls)
    with contextlib.suppress(OSError):  # done on both sides: whichever comes first
        os.setpgid(child, child)
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
    os.killpg(child, signal.SIGKILL)  # with the programs that an unconfined one has started
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
    walls: _Walls,
) -> NoReturn:
    try:
        os.setpgid(0, 0)
        confinement.die_with_parent()
        os.close(receiving)
        link.close()
        if walls.limited:
            confinement.limit_resources(memory_bytes=_MEMORY_BYTES, cpu_s=math.ceil(deadline_s) + 1)
        if walls.sealed:
            confinement.seal(walls.folders)
        work(sending)
    finally:
        os._exit(0)


def _score(score: Scorer, request: bytes, out: int) -> None:
    try:
        payload = json.dumps(score(json.loads(request)), allow_nan=False).encode()
    except BaseException as error:  # noqa: BLE001  (SystemExit included: whatever a verifier raises is its error)
        payload = json.dumps({"error": raised(error)}).encode()
    _write(out, payload)


def _write(out: int, payload: bytes) -> None:
    while payload:
        payload = payload[os.write(out, payload) :]


def _self_test(walls: _Walls) -> str:
    """Tries in a child what no child may be able to do; returns what is missing or was not refused."""
    if why := confinement.missing():
        return why
    ours, theirs = socket.socketpair()
    with ours, theirs:
        kind, said = _in_child(theirs, _attack, 30.0, walls)
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

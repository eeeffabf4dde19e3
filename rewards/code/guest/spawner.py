"""Makes the answer's processes, each a fork of one that has seen neither answer nor tests.

It stands between the two: its memory holds no test, so that a child has none to find, and it is told what to run.
"""

from __future__ import annotations

import os
import select

from rewards.code.guest import answer, text, walls
from rewards.code.guest.link import receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_ORDER_BYTES = 64 << 20
_MAX_ERROR_BYTES = 2048
_CHUNK_BYTES = 1 << 16
_KILL = 9


class Spawner:
    """Serves orders from one pipe and tells on another what became of each.

    Args:
      orders, news: pipes from and to the tests' process.
      asked, replies: pipes that the answer's process talks to the tests' process by.
    """

    def __init__(self, orders: int, news: int, asked: int, replies: int, setup: dict[str, Any]) -> None:
        self._orders, self._news = orders, news
        self._asked, self._replies = asked, replies
        self._limits = setup["limits"]
        self._filter = bytes.fromhex(setup["filter"])

    def serve(self) -> NoReturn:
        """Until the pipe of orders is closed."""
        try:
            while True:
                order = text.loads(receive(self._orders, MAX_ORDER_BYTES))
                if order is None:
                    self._serve_calls()
                else:
                    self._run(order)
        finally:
            os._exit(0)

    def _serve_calls(self) -> None:
        child = os.fork()
        if child == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            self._enclose({0, 1, 2, self._asked, self._replies})
            answer.serve(self._asked, self._replies)
        send(self._news, child.to_bytes(4, "big"))
        _, status = os.waitpid(child, 0)
        # The next process must not read what was meant for this one.
        drain(self._asked)
        send(self._news, os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))

    def _run(self, order: dict[str, Any]) -> None:
        given = os.memfd_create("stdin")
        os.write(given, b"") if not order["stdin"] else _write_all(given, bytes.fromhex(order["stdin"]))
        os.lseek(given, 0, os.SEEK_SET)
        out, out_end = os.pipe()
        error, error_end = os.pipe()
        child = os.fork()
        if child == 0:
            for standard, descriptor in enumerate((given, out_end, error_end)):
                os.dup2(descriptor, standard)
            self._enclose({0, 1, 2})
            answer.run_program(order["code"], ["answer.py"])
        send(self._news, child.to_bytes(4, "big"))
        for descriptor in (given, out_end, error_end):
            os.close(descriptor)
        printed, said, too_long = _collect(out, error, order["limit"])
        if too_long:
            os.kill(child, _KILL)
        os.close(out)
        os.close(error)
        _, status = os.waitpid(child, 0)
        send(self._news, os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        send(self._news, bytes([too_long]) + printed)
        send(self._news, said)

    def _enclose(self, kept: set[int]) -> None:
        walls.close_others(kept)
        walls.limit(self._limits)
        walls.filter_calls(self._filter)


def _write_all(descriptor: int, data: bytes) -> None:
    waiting = memoryview(data)
    while waiting:
        waiting = waiting[os.write(descriptor, waiting) :]


def _collect(out: int, error: int, limit: int) -> tuple[bytes, bytes, bool]:
    """What a program writes until it closes both pipes; cut off where it writes more than `limit` bytes."""
    printed, said = bytearray(), bytearray()
    poll = select.poll()
    for descriptor in (out, error):
        poll.register(descriptor, select.POLLIN)
    open_ends = 2
    while open_ends:
        for descriptor, _ in poll.poll():
            chunk = os.read(descriptor, _CHUNK_BYTES)
            if not chunk:
                poll.unregister(descriptor)
                open_ends -= 1
            elif descriptor == out:
                printed += chunk
                if len(printed) > limit:
                    return bytes(printed[:limit]), bytes(said), True
            else:
                said = (said + chunk)[-_MAX_ERROR_BYTES:]
    return bytes(printed), bytes(said), False


def drain(descriptor: int) -> None:
    """Reads and drops what is in a pipe."""
    os.set_blocking(descriptor, False)
    try:
        while os.read(descriptor, _CHUNK_BYTES):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(descriptor, True)

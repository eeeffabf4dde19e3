"""The answer's process as the tests' process sees it: started, asked, and replaced when it is gone.

A deadline is an alarm of this process: `Late` is raised wherever it is, in a test's own loop as well.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select

from rewards.code.guest import text
from rewards.code.guest.link import header, receive, send
from rewards.code.guest.spawner import drain
from rewards.code.guest.values import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_REPLY_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 16
_MAX_NEWS_BYTES = 256 << 20
_SIGALRM, _SIGKILL = 14, 9
_SIGNALS = {
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    24: "SIGXCPU",
    31: "SIGSYS",
}
_AGAIN_S = 0.05


class Late(BaseException):
    """The time for a case is over; a BaseException, so that a test's own `except Exception` lets it pass."""


class Died(Exception):
    """The answer's process ended."""


class Alarm:
    """Raises `Late` after some seconds, and again until it is off: what it meets may swallow one.

    As a context manager it holds `Late` back, for what must not be broken off halfway.
    """

    def __init__(self) -> None:
        self._is_on = self._is_held = self._has_rung = False
        _signal.signal(_SIGALRM, self._ring)

    def start(self, seconds: float) -> None:
        self._is_on = True
        _signal.setitimer(_signal.ITIMER_REAL, max(seconds, 0.001), _AGAIN_S)

    def stop(self) -> None:
        self._is_on = self._has_rung = False
        _signal.setitimer(_signal.ITIMER_REAL, 0)

    def __enter__(self) -> None:
        self._is_held = True

    def __exit__(self, *_: object) -> None:
        self._is_held = False
        if self._has_rung and self._is_on:
            raise Late

    def _ring(self, number: int, frame: Any) -> None:
        if self._is_held:
            self._has_rung = True
        elif self._is_on:
            raise Late


class AnswerProcess:
    """Talks to the spawner and to the process that it made last.

    Args:
      orders, news: pipes to and from the spawner.
      asking, replies: pipes to and from the answer's process.

    Attributes:
      number: of processes made so far.
    """

    def __init__(self, orders: int, news: int, asking: int, replies: int, alarm: Alarm) -> None:
        self._orders, self._news = orders, news
        self._asking, self._replies = asking, replies
        self._alarm = alarm
        os.set_blocking(asking, False)
        self._child = 0
        self._is_program = False
        self.number = 0

    @property
    def is_running(self) -> bool:
        return self._child != 0

    def start(self) -> None:
        """Makes a process that calls functions."""
        with self._alarm:
            self._order(b"null", is_program=False)

    def stop(self) -> None:
        """Kills the process; what it wrote and nobody read is dropped."""
        if self._child:
            with self._alarm:
                try:  # noqa: SIM105  (contextlib would be one more module to load)
                    os.kill(self._child, _SIGKILL)
                except ProcessLookupError:  # it has just ended
                    pass
                self._end()

    def run(self, code: str, stdin: bytes, limit: int) -> tuple[str, bytes, str]:
        """Runs a program; returns how it ended ("" for well), what it printed, and its last words on errors."""
        with self._alarm:
            order = {"code": code, "stdin": stdin.hex(), "limit": limit}
            self._order(text.dumps(order), is_program=True)
        poll = select.poll()
        poll.register(self._news, select.POLLIN)
        poll.poll()
        with self._alarm:
            status, printed, said = self._end()
        last_words = said.decode("utf-8", "replace")
        if printed[0]:
            return f"more than {limit} bytes of output", printed[1:], last_words
        return ("" if status == 0 else ended(status)), printed[1:], last_words

    def ask(self, payload: bytes) -> dict[str, Any]:
        """Sends a frame and gives the next reply.

        Raises:
          Died: the process ended instead.
          Malformed: what it wrote is no reply.
        """
        self._write(header(payload) + payload)
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """The next reply of the process."""
        length = int.from_bytes(self._read(4), "big")
        if length > MAX_REPLY_BYTES:
            raise Malformed(f"a result of {length} bytes, allowed are {MAX_REPLY_BYTES}")
        try:
            reply = text.loads(self._read(length))
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise Malformed("what came back is no reply")
        return reply

    def _write(self, data: bytes) -> None:
        waiting = memoryview(data)
        while waiting:
            self._wait(self._asking, select.POLLOUT)
            try:
                waiting = waiting[os.write(self._asking, waiting[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                continue

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            self._wait(self._replies, select.POLLIN)
            parts += os.read(self._replies, min(length - len(parts), _CHUNK_BYTES))
        return bytes(parts)

    def _wait(self, descriptor: int, event: int) -> None:
        """Until the descriptor is ready, or the process has ended and left nothing in it."""
        poll = select.poll()
        poll.register(descriptor, event)
        poll.register(self._news, select.POLLIN)
        ready = {number for number, _ in poll.poll()}
        if descriptor not in ready:
            with self._alarm:
                status, _, _ = self._end()
            raise Died(ended(status))

    def _order(self, order: bytes, *, is_program: bool) -> None:
        send(self._orders, order)
        self._child = int.from_bytes(self._hear(), "big")
        self._is_program = is_program
        self.number += 1

    def _end(self) -> tuple[int, bytes, bytes]:
        """Status of the process, and of a program what it wrote."""
        status = int.from_bytes(self._hear(), "big", signed=True)
        printed, said = (self._hear(), self._hear()) if self._is_program else (b"\0", b"")
        drain(self._replies)
        self._child = 0
        return status, printed, said

    def _hear(self) -> bytes:
        return receive(self._news, _MAX_NEWS_BYTES)


def ended(status: int) -> str:
    """How a process ended, in words."""
    if status < 0:
        return f"the process was ended by {_SIGNALS.get(-status, f'signal {-status}')}"
    return f"the process exited with status {status}"

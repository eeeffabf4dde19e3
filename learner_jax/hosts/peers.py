"""The other hosts of a learner as this one hears them: beats, what they say of ends, and what follows from silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from learner_jax.hosts.wire import Beat, Bye, Connection, Failed, Message, WireError, shown

#: Beyond its bound, what it takes until every host's process has ended: telling the others, and the last line.
END_WITHIN_S = 10.0
#: A host that fails by itself gets this long to end before it is ended.
_UNWIND_S = 8.0
_TELL_S = 1.0
#: Beats within the time after which a silent host is dead.
_BEATS = 8
_SLOWEST_BEAT_S = 1.0


@dataclass
class Peer:
    """Another host; `has_left` when it said that it has finished, or its connection has ended."""

    index: int
    connection: Connection
    heard_s: float
    has_left: bool = False


def end_process(text: str) -> None:
    """Ends this process with status 1 and `text` as its last line, wherever its other threads are."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(1)


class Peers:
    """The connections to the other hosts; lives in one event loop.

    Args:
      index, count: this host, of how many.
      heartbeat_s: a host that is silent for this long is taken for dead.
      end: ends the process with a message.

    Attributes:
      log: told of the reason before the process ends.
    """

    def __init__(self, index: int, count: int, *, heartbeat_s: float, end: Callable[[str], None] = end_process) -> None:
        self.index, self.count, self.heartbeat_s = index, count, heartbeat_s
        self._beat_s, self._end = min(heartbeat_s / _BEATS, _SLOWEST_BEAT_S), end
        self.log: Callable[..., None] | None = None
        self._peers: dict[int, Peer] = {}
        self._changed = asyncio.Event()
        self._kept: list[asyncio.Task[None]] = []
        self._has_begun = self._is_over = self._is_leaving = False
        self._asked = 0
        self._answers: dict[int, set[int]] = {}

    @property
    def name(self) -> str:
        return f"host {self.index} of {self.count}"

    def add(self, index: int, connection: Connection) -> Peer:
        """Takes in a connection to a host; the first one counts until all hosts have come."""
        peer = Peer(index, connection, _now_s())
        if self._has_begun:
            self._peers[index] = peer
        else:
            self._peers.setdefault(index, peer)
        self._changed.set()
        return peer

    def begin(self) -> None:
        """From here on, those that end or fall silent end this process."""
        self._has_begun = True
        for peer in self._peers.values():
            peer.heard_s = _now_s()
        self.keep(self._beat())

    async def all_here(self) -> None:
        """Returns once there is a connection to every host; one that can't come has failed, which ends this process."""
        while len(self._peers) < self.count - 1:
            self._changed.clear()
            await self._changed.wait()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it in the background; the loop alone would not keep it from being collected."""

        async def kept() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - without its watch this host must not go on
                text = f"{self.name} can't watch the others any more: {type(error).__name__}: {error}"
                self._finish(text, self.index)

        self._kept.append(asyncio.get_running_loop().create_task(kept()))

    async def hear(self, peer: Peer) -> None:
        """Takes in what a host says, until its connection ends."""
        try:
            while True:
                message = await peer.connection.receive()
                peer.heard_s = _now_s()
                match message:
                    case Beat():
                        self._heard_beat(peer, message)
                    case Bye():
                        peer.has_left = True
                        self._changed.set()
                    case Failed():
                        await self.over(message.host, shown(message.message), told_by=peer.index)
        except (OSError, EOFError, WireError):
            pass
        expected = peer.has_left or self._is_leaving or not self._has_begun or self._peers.get(peer.index) is not peer
        peer.has_left = True
        self._changed.set()
        if not expected:
            await self.over(
                peer.index,
                f"host {peer.index} died: its process was killed or its machine went down; look at its log, and at its "
                f"machine's for a kill or a lack of memory",
            )

    def _heard_beat(self, peer: Peer, beat: Beat) -> None:
        if beat.ask:
            peer.connection.send(Beat(answer=beat.ask))
        if beat.answer in self._answers:
            self._answers[beat.answer].add(peer.index)
            self._changed.set()

    async def _beat(self) -> None:
        """Sends beats and looks who has not sent any for too long."""
        last_s = _now_s()
        while True:
            await asyncio.sleep(self._beat_s)
            now_s = _now_s()
            if now_s - last_s > self.heartbeat_s / 2:  # this process was itself stopped, and can't judge the others
                for peer in self._peers.values():
                    peer.heard_s = now_s
            last_s = now_s
            for peer in self._peers.values():
                if not peer.has_left:
                    peer.connection.send(Beat())
            await self._judge(now_s)

    async def _judge(self, now_s: float) -> None:
        silent_s = {p.index: now_s - p.heard_s for p in self._peers.values() if not p.has_left}
        if self._is_leaving or not silent_s or max(silent_s.values()) < self.heartbeat_s:
            return
        # Those that fell silent together did so for one reason; their last beats are a little apart.
        hosts = [index for index, silence in silent_s.items() if silence > self.heartbeat_s - 3 * self._beat_s]
        cut_off = len(hosts) == self.count - 1 > 1
        likely = (
            "this host was cut off from the network" if cut_off else "its process or machine is stopped, or cut off"
        )
        heard = f"heard nothing from {_listed(hosts)} for {self.heartbeat_s:g} s (learner.hosts.heartbeat_timeout_s)"
        await self.over(hosts[0], f"host {self.index} {heard}: {likely}", own=f"it {heard}: {likely}")

    async def over(self, host: int, message: str, *, own: str | None = None, told_by: int | None = None) -> None:
        """Another host, or this one in another's eyes, can't go on: ends this process, and tells the others first.

        `own` is the message in this host's own words.
        """
        if self._is_over:
            return
        self._is_over = True
        await self.tell(Failed(host, message))
        if host == self.index:
            text = f"{self.name} stops, because host {told_by} gave it up: {message}; was this process stopped?"
        else:
            text = f"{self.name} stops, because {own or message}"
        self._finish(text, host)

    async def fail(self, message: str) -> None:
        """Tells the others that this host can't go on; it has some seconds to end by itself."""
        if self._is_over:
            await asyncio.Event().wait()  # the process ends for the reason that came first
        self._is_over = True
        await self.tell(Failed(self.index, f"host {self.index} failed: {message}"))
        asyncio.get_running_loop().call_later(_UNWIND_S, self._finish, f"{self.name} failed: {message}", self.index)

    async def tell(self, message: Message) -> None:
        """Sends it to every host, as far as that is possible in a moment."""
        peers = [peer for peer in self._peers.values() if not peer.has_left]
        for peer in peers:
            peer.connection.send(message)
        await self.sent()

    def _finish(self, text: str, host: int) -> None:
        if self.log is not None:
            # In a thread: a folder that is gone with a host's network must not keep this process.
            logging = threading.Thread(target=self._write, args=(self.log, text, host), daemon=True)
            logging.start()
            logging.join(_TELL_S)
        self._end(text)

    @staticmethod
    def _write(log: Callable[..., None], text: str, host: int) -> None:
        with contextlib.suppress(Exception):
            log("host_failed", host=host, error=text)

    async def settle(self) -> None:
        """Returns once every host was seen alive after this call; if one is not, the process ends meanwhile."""
        self._asked += 1
        number = self._asked
        answered = self._answers[number] = set[int]()
        for peer in self._peers.values():
            peer.connection.send(Beat(ask=number))
        while self._is_over or not all(peer.has_left or peer.index in answered for peer in self._peers.values()):
            self._changed.clear()
            await self._changed.wait()
        del self._answers[number]

    async def leave(self) -> None:
        """Parts from the others, all of which have finished."""
        self._is_leaving = True
        await self.tell(Bye())
        deadline = _now_s() + self.heartbeat_s
        while (remaining := deadline - _now_s()) > 0 and not all(p.has_left for p in self._peers.values()):
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), remaining)

    async def sent(self) -> None:
        """Returns once what was said to the others is on its way, or a moment is over."""
        sending = [asyncio.ensure_future(peer.connection.sent()) for peer in self._peers.values()]
        if sending:
            await asyncio.wait(sending, timeout=_TELL_S)


def _listed(indices: list[int]) -> str:
    return f"host{'s' if len(indices) > 1 else ''} {', '.join(map(str, sorted(indices)))}"


def _now_s() -> float:
    return asyncio.get_running_loop().time()

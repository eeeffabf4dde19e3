"""One host of several and what it hears of the others, without sockets: for tests in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from learner_jax.hosts.peers import Peers
from learner_jax.hosts.wire import Beat, Message

HEARTBEAT_S = 8.0
BEAT_S = HEARTBEAT_S / 8


class Line:
    """A connection whose other end is the test: what it `says` is heard, and what was `told` it."""

    def __init__(self) -> None:
        self.told: list[Message] = []
        self.is_slow = False
        self._said: asyncio.Queue[Message | Exception] = asyncio.Queue()

    def says(self, message: Message | Exception) -> None:
        self._said.put_nowait(message)

    def send(self, message: Message) -> None:
        self.told.append(message)

    async def receive(self) -> Message:
        message = await self._said.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def sent(self) -> None:
        if self.is_slow:
            await asyncio.Event().wait()

    def told_but_beats(self) -> list[Message]:
        return [message for message in self.told if not isinstance(message, Beat)]


class Host:
    """Host 0 of several, with a line to each of the others that `joins`."""

    def __init__(self, count: int) -> None:
        self.ends: list[tuple[str, float]] = []
        self.peers = Peers(0, count, heartbeat_s=HEARTBEAT_S, end=self._end)
        self.lines: dict[int, Line] = {}

    def _end(self, text: str) -> None:
        self.ends.append((text, now()))

    def joins(self, index: int) -> Line:
        line: Any = Line()
        self.peers.keep(self.peers.hear(self.peers.add(index, line)))
        self.lines[index] = line
        return line

    def all_beat(self, *indices: int) -> None:
        """These say each beat that they live, from now on."""

        async def beating() -> None:
            while True:
                for index in indices:
                    self.lines[index].says(Beat())
                await asyncio.sleep(BEAT_S)

        self.peers.keep(beating())


def now() -> float:
    return asyncio.get_running_loop().time()


def begun(count: int) -> Host:
    host = Host(count)
    for index in range(1, count):
        host.joins(index)
    host.peers.begin()
    return host

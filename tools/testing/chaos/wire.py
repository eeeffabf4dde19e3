"""A TCP proxy before an engine that cuts, resets, stalls, delays, trickles, damages or repeats what passes, as told.

What it is told lies in a file, read anew for every piece that passes: it can be changed while connections are open, and
holds for an engine that is started again. A stall of one side is a partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

from learner_jax.runtime import write_whole

WireKind = Literal["none", "cut", "reset", "stall", "delay", "trickle", "corrupt", "duplicate"]
Side = Literal["both", "controller", "worker"]
WIRE_KINDS: tuple[WireKind, ...] = get_args(WireKind)
SIDES: tuple[Side, ...] = get_args(Side)

_POLL_S = 0.02
_PIECE_BYTES = 1 << 16
_DELAY_S = 0.2
_TRICKLE_BYTES, _TRICKLE_S = 64, 0.01
_DAMAGED_BYTES = 24
_MODULES: dict[str, Side] = {"tools.rollout": "worker", "tools.serve": "controller"}


@dataclass(frozen=True)
class WireFault:
    """What is wrong with the connections of one side, or of both."""

    kind: WireKind = "none"
    side: Side = "both"


def tell(path: Path, fault: WireFault) -> None:
    """Sets the fault of the proxies that look into this file."""
    write_whole(path, json.dumps(asdict(fault)))


def told(path: Path) -> WireFault:
    try:
        return WireFault(**json.loads(path.read_text()))
    except FileNotFoundError:
        return WireFault()


class Requests:
    """Cuts a stream of HTTP requests into whole ones, by their Content-Length."""

    def __init__(self) -> None:
        self._held = b""

    def add(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end].lower()
            _, found, rest = head.partition(b"\r\ncontent-length:")
            size = end + 4 + (int(rest.partition(b"\r\n")[0]) if found else 0)
            if len(self._held) < size:
                return
            yield self._held[:size]
            self._held = self._held[size:]


def side_of(port: int) -> Side:
    """Whose connection comes from this local port, by the module that its process runs; "both" if it can't be told.

    Looks into /proc itself: psutil would look through the sockets of every process, for each connection that comes.
    """
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            inode = fields[9]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            module = next((m for m in _MODULES if m.encode() in (entry / "cmdline").read_bytes()), None)
            if module and any(os.readlink(link) == f"socket:[{inode}]" for link in (entry / "fd").iterdir()):
                return _MODULES[module]
    return "both"


class Proxy:
    """Passes connections on to an engine.

    Args:
      port: of the engine, on the same host.
      fault: says what is wrong now.
      draws: randomness of the damage.
      side: whose connection comes from a local port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        fault: Callable[[], WireFault],
        draws: random.Random,
        side: Callable[[int], Side] = side_of,
    ) -> None:
        self._host, self._port, self._fault, self._draws, self._side = host, port, fault, draws, side
        self._repeats: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection, as `asyncio.start_server` wants it."""
        side = cache(partial(self._side, writer.get_extra_info("peername")[1]))  # asked only while it matters
        try:
            if _kind(self._fault(), side) == "reset":
                _reset(writer)
                return
            engine_reader, engine_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            _reset(writer)
            return
        pumps = [
            asyncio.ensure_future(self._pump(reader, engine_writer, side, Requests(), writer)),
            asyncio.ensure_future(self._pump(engine_reader, writer, side, None, writer)),
        ]
        try:
            # Either end that closes ends both: an HTTP client that goes away has its request aborted.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for stream in (writer, engine_writer):
                stream.close()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        side: Callable[[], Side],
        requests: Requests | None,
        client: asyncio.StreamWriter,
    ) -> None:
        """Passes one direction on; `requests` is given for that of the requests."""
        while data := await reader.read(_PIECE_BYTES):
            whole = list(requests.add(data)) if requests is not None else []
            fault = self._fault()
            kind = _kind(fault, side)
            if kind == "cut":
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return
            if kind == "reset":
                _reset(client)
                return
            if kind == "delay":
                await asyncio.sleep(_DELAY_S)
            while kind == "stall" and self._fault() == fault:
                await asyncio.sleep(_POLL_S)
            if kind == "duplicate":
                for request in whole:
                    self._repeat(request)
            if kind == "corrupt" and requests is None:
                data = damaged(data, self._draws)
            if kind == "trickle":
                for start in range(0, len(data), _TRICKLE_BYTES):
                    writer.write(data[start : start + _TRICKLE_BYTES])
                    await writer.drain()
                    await asyncio.sleep(_TRICKLE_S)
            else:
                writer.write(data)
                await writer.drain()

    def _repeat(self, request: bytes) -> None:
        async def send() -> None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5.0):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                    try:
                        writer.write(request)
                        await reader.read(_PIECE_BYTES)
                    finally:
                        writer.close()

        task = asyncio.ensure_future(send())
        self._repeats.add(task)
        task.add_done_callback(self._repeats.discard)


def _kind(fault: WireFault, side: Callable[[], Side]) -> WireKind:
    """What is wrong with a connection of this side."""
    return fault.kind if fault.kind == "none" or fault.side in ("both", side()) else "none"


def damaged(data: bytes, draws: random.Random) -> bytes:
    """The same number of bytes, some of them such as neither HTTP nor JSON can hold.

    Bytes that stay plausible would not be noticed by anybody: TCP's own checksum is what guards against those.
    """
    changed = bytearray(data)
    for _ in range(min(_DAMAGED_BYTES, len(changed))):
        changed[draws.randrange(len(changed))] = 0xFF
    return bytes(changed)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes by RST instead of FIN."""
    found = writer.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

"""JAX's coordination service over the hosts' own connections: it listens on no network, and a lost host is silent.

The service listens on a Unix socket of host 0 alone. Every other host has a Unix socket of its own, for its JAX client
alone; what goes in there comes out at the service. When host 0 is lost, JAX finds a connection that says nothing, where
a closed one would make it abort the process before anybody is told why. No proxy of the environment is asked either.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 16
_SERVICE_POLL_S = 0.05
_SERVICE_WITHIN_S = 60.0
#: A Unix socket's path must fit into 108 bytes.
_MAX_PATH_BYTES = 100
_SOCKET = "jax.sock"


def private_folder() -> Path:
    """A new folder that only this user may enter, with room for a socket's path."""
    given = Path(tempfile.mkdtemp(prefix="weir-hosts-"))
    if len(str(given / _SOCKET).encode()) <= _MAX_PATH_BYTES:
        return given
    given.rmdir()
    return Path(tempfile.mkdtemp(prefix="weir-hosts-", dir="/tmp"))


def socket_path(folder: Path) -> Path:
    return folder / _SOCKET


def remove_folder(folder: Path) -> None:
    """Once all are connected, nobody needs the names any more; nothing is left behind then, also by a kill."""
    socket_path(folder).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


async def to_service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, folder: Path) -> None:
    """Host 0's end of one connection: carries it to the service, until one side closes."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SERVICE_WITHIN_S
    while True:
        try:
            service = await asyncio.open_unix_connection(socket_path(folder))
            break
        except OSError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(_SERVICE_POLL_S)
    try:
        await _first(_pump(reader, service[1]), _pump(service[0], writer))
    finally:
        service[1].close()


async def serve_client(
    folder: Path,
    connect: Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]],
    never: asyncio.Event,
) -> asyncio.Server:
    """Another host's end: a socket for its JAX client; `connect` makes a connection to host 0 for each of its own.

    A connection of JAX is not closed but when `never` is set: JAX would abort the process.
    """

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            remote = await connect()
            to_remote = asyncio.ensure_future(_pump(reader, remote[1]))
            with contextlib.suppress(OSError, EOFError):
                await _pump(remote[0], writer)
            with contextlib.suppress(OSError, EOFError):
                await to_remote
        await never.wait()

    return await asyncio.start_unix_server(carry, socket_path(folder))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


async def _first(*pumps: Coroutine[Any, Any, None]) -> None:
    """Runs until the first of them ends, and ends the others."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

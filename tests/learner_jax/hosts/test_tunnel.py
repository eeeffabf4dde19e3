"""JAX's way to its coordination service: carried both ways, never closed from afar, without names once all are in."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from learner_jax.hosts import tunnel
from learner_jax.hosts.tunnel import private_folder, remove_folder, serve_client, socket_path, to_service

#: Nothing here takes long; what hangs is told of.
LIMIT_S = 20.0


def within(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


@pytest.fixture
def folder() -> Any:
    found = private_folder()
    yield found
    remove_folder(found)
    assert not found.exists()


class Service:
    """What listens in a folder: it answers everything with the same in capitals, and ends at "end"."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def listen(self, folder: Path) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, socket_path(folder))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (said := await reader.read(100)) and said != b"end":
            writer.write(said.upper())
            await writer.drain()
        self.ended.set()
        writer.close()


async def pair() -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter], ...]:
    """Both ends of a connection on this machine."""
    accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result((reader, writer))

    server = await asyncio.start_server(visited, "127.0.0.1", 0)
    near = await asyncio.open_connection(*server.sockets[0].getsockname())
    far = await accepted
    server.close()
    return near, far


def test_a_folder_is_for_its_user_alone_and_its_socket_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("short", "long" * 25):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.setattr(tunnel.tempfile, "tempdir", str(place))
        made.append(private_folder())
        assert stat.S_IMODE(made[-1].stat().st_mode) == 0o700
        assert len(str(socket_path(made[-1])).encode()) <= 107, "what the kernel takes"
    for found in made:
        remove_folder(found)
    assert made[1].parent == Path("/tmp")
    assert [path for path in tmp_path.rglob("*") if path.name.startswith("weir-hosts")] == []


def test_the_names_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    socket_path(tmp_path).touch()
    (tmp_path / "other").touch()
    remove_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    (tmp_path / "other").unlink()
    remove_folder(tmp_path)
    remove_folder(tmp_path)
    assert not tmp_path.exists()


def test_a_host_that_comes_early_waits_for_the_service_and_is_carried_both_ways(folder: Path) -> None:
    async def story() -> None:
        service = Service()
        near, far = await pair()
        carrying = asyncio.create_task(to_service(*far, folder))
        near[1].write(b"hello")
        await asyncio.sleep(3 * tunnel._SERVICE_POLL_S)
        assert not carrying.done()
        listening = await service.listen(folder)
        assert await near[0].read(100) == b"HELLO"
        near[1].write(b"again")
        assert await near[0].read(100) == b"AGAIN"
        near[1].write(b"end")  # the service ends it: so does the tunnel
        await carrying
        listening.close()
        near[1].close()
        far[1].close()

    within(story())


def test_the_end_of_a_host_ends_its_connection_to_the_service(folder: Path) -> None:
    async def story() -> None:
        service = Service()
        listening = await service.listen(folder)
        near, far = await pair()
        carrying = asyncio.create_task(to_service(*far, folder))
        near[1].write(b"hello")
        assert await near[0].read(100) == b"HELLO"
        near[1].close()
        await carrying
        await service.ended.wait()
        listening.close()
        far[1].close()

    within(story())


def test_a_service_that_never_listens_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "_SERVICE_WITHIN_S", 0.2)

    async def story() -> None:
        near, far = await pair()
        with pytest.raises(FileNotFoundError):
            await to_service(*far, folder)
        near[1].close()
        far[1].close()

    within(story())


def test_jax_is_not_hung_up_on_while_the_process_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where host 0 is gone, and where it was never reached."""
    held: list[asyncio.StreamWriter] = []
    start = asyncio.start_unix_server

    async def noted(visited: Any, path: Path) -> asyncio.Server:
        async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            await visited(reader, writer)

        return await start(noting, path)

    monkeypatch.setattr(asyncio, "start_unix_server", noted)

    async def story() -> None:
        never = asyncio.Event()
        near, far = await pair()
        ways = [near]

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            if not ways:
                raise ConnectionRefusedError
            return ways.pop()

        listening = await serve_client(folder, connect, never)
        first = await asyncio.open_unix_connection(socket_path(folder))
        first[1].write(b"hello")
        assert await far[0].read(100) == b"hello"
        far[1].write(b"answer")
        assert await first[0].read(100) == b"answer"
        second = await asyncio.open_unix_connection(socket_path(folder))
        far[1].close()
        for reader, _ in (first, second):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
        never.set()
        for writer in (first[1], second[1], *held):
            writer.close()
        listening.close()
        near[1].close()
        await asyncio.sleep(0.05)

    within(story())

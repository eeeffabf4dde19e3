"""The proxy between Weir and an engine does to what passes what it is told, and nothing else."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.testing.chaos.inject import SkippedError, disturb
from tools.testing.chaos.wire import Proxy, Requests, WireFault, damaged, tell, told

REQUEST = b"POST /x HTTP/1.1\r\nContent-Length: 300\r\n\r\n" + b"a" * 300


def test_requests_are_cut_at_their_ends() -> None:
    requests, stream = Requests(), REQUEST + b"GET /health HTTP/1.1\r\n\r\n" + REQUEST
    found = [whole for at in range(0, len(stream), 7) for whole in requests.add(stream[at : at + 7])]
    assert found == [REQUEST, b"GET /health HTTP/1.1\r\n\r\n", REQUEST]


async def through_proxy(fault: Callable[[], WireFault]) -> tuple[bytes | str, int, float]:
    """What a client gets back for REQUEST from an engine that echoes, how many requests that saw, and seconds."""
    arrived = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        try:
            data = await reader.readexactly(len(REQUEST))
            arrived += 1
            writer.write(data)
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    engine = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = engine.sockets[0].getsockname()[1]
    proxy = Proxy("127.0.0.1", port, fault=fault, draws=random.Random(1), side=lambda _: "worker")
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    started = time.monotonic()
    got: bytes | str
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(REQUEST)
        async with asyncio.timeout(1.0):
            got = await reader.readexactly(len(REQUEST))
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        got = type(error).__name__
    seconds = time.monotonic() - started
    await asyncio.sleep(0.1)
    writer.close()
    for listener in (server, engine):
        listener.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0.02)
    return got, arrived, seconds


@pytest.mark.parametrize(
    ("fault", "got", "arrived", "least_s"),
    [
        (WireFault(), REQUEST, 1, 0.0),
        (WireFault("reset", "controller"), REQUEST, 1, 0.0),
        (WireFault("reset", "worker"), "ConnectionResetError", 0, 0.0),
        (WireFault("cut"), "IncompleteReadError", 0, 0.0),
        (WireFault("stall"), "TimeoutError", 0, 1.0),
        (WireFault("delay"), REQUEST, 1, 0.4),
        (WireFault("trickle"), REQUEST, 1, 0.1),
        (WireFault("duplicate"), REQUEST, 2, 0.0),
    ],
)
def test_the_proxy_does_what_it_is_told(fault: WireFault, got: bytes | str, arrived: int, least_s: float) -> None:
    found = asyncio.run(through_proxy(lambda: fault))
    assert found[:2] == (got, arrived)
    assert found[2] >= least_s


def test_a_stall_that_is_healed_goes_on() -> None:
    until = time.monotonic() + 0.3
    found = asyncio.run(through_proxy(lambda: WireFault("stall") if time.monotonic() < until else WireFault()))
    assert found[:2] == (REQUEST, 1)
    assert found[2] >= 0.25


def test_damage_on_the_wire_can_be_noticed() -> None:
    data = json.dumps({"token_ids": list(range(50))}).encode()
    with pytest.raises(UnicodeDecodeError):
        damaged(data, random.Random(0)).decode()
    assert len(damaged(data, random.Random(0))) == len(data)


def test_the_wires_fault_lies_in_a_file(tmp_path: Path) -> None:
    assert told(tmp_path / "wire.json") == WireFault()
    tell(tmp_path / "wire.json", WireFault("cut", "worker"))
    assert told(tmp_path / "wire.json") == WireFault("cut", "worker")


def test_an_engine_behind_a_damaged_wire_can_not_be_told_anything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"H\xffTP/1.1\xff200 OK\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(SkippedError, match="does not answer"):
            disturb(f"http://127.0.0.1:{server.getsockname()[1]}", "token", {})
        answering.join()

"""Clients that read slowly: they lose their connection, and what they asked for ends; others are let be."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.gateway import connections
from serving_bridge.text import Tokenizer
from tests.support.gateway_requests import raw_request, until
from tests.support.gateway_world import HOST, Script, World, running_gateway
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

#: 128 choices that each begin with a long prompt: more than a megabyte, and more than sockets hold
ECHO: dict[str, Any] = {"model": "policy", "prompt": ["It is twelve. " * 700] * 8, "n": 16, "echo": True}


async def asked_by_hand(world: World, body: Any) -> socket.socket:
    """A socket with a small buffer, on which a request was sent and nothing read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (HOST, world.port))
    await loop.sock_sendall(client, raw_request(body).replace(b"/v1/chat/completions", b"/v1/completions"))
    return client


async def read(client: socket.socket, size: int, pause_s: float) -> int:
    """Bytes until the server ended the connection, or two seconds passed without any."""
    loop, total = asyncio.get_running_loop(), 0
    client.setblocking(False)
    while not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        try:
            block = await asyncio.wait_for(loop.sock_recv(client, size), 60.0 if not total else 2.0)
        except (ConnectionError, TimeoutError):
            break
        if not block:
            break
        total += len(block)
        await asyncio.sleep(pause_s)
    return total


@pytest.mark.parametrize("stream", [False, True])
def test_one_byte_a_second_is_too_slow(
    stream: bool, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_READ_S", 0.5)

    async def play() -> None:
        script = Script("ok", token_s=0.1)
        async with running_gateway(tmp_path, tokenizer, script, max_tokens=16) as world:
            with await asked_by_hand(world, {**ECHO, "stream": stream}) as client:
                began_s = time.monotonic()
                taken = await asyncio.wait_for(read(client, 1, 1.0), 90)
            assert taken < 90
            assert time.monotonic() - began_s > 0.5
            await until(lambda: script.running == 0, 2.0)
            assert (await world.ask())[0] == 200

    asyncio.run(play())


def test_who_reads_steadily_gets_all(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_READ_S", 0.3)

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script("ok"), max_tokens=16) as world:
            with await asked_by_hand(world, ECHO) as client:
                began_s = time.monotonic()
                total = await asyncio.wait_for(read(client, 20_000, 0.005), 90)
            assert total > 600_000
            assert time.monotonic() - began_s > 1.0, "it was all in the sockets' buffers"

    asyncio.run(play())


def test_a_large_body_that_comes_in_one_piece_is_no_large_head(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script("ok"), max_tokens=16) as world:
            for size in (20_000, 33_000, 60_000, 100_000):  # around the bound on heads, and around one read
                status, answer = await world.ask("/v1/completions", prompt="y " * (size // 2))
                assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")

    asyncio.run(play())

"""How long an answer may take at a replica that holds what gives way to users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.vllm.answers import Unreachable
from serving_bridge.vllm.client import DEFERRED, VllmClient
from tests.support.rollout_world import choice, reply, virtually

TIMEOUT_S = 10.0


class Server:
    """Answers `ready_s` after it was asked; for `held_s` from the first request it says that it holds answers.

    Args:
      looks: whether its metrics can be had.
      look_s: how long they take.
    """

    def __init__(self, ready_s: float, held_s: float, *, looks: bool = True, look_s: float = 0.0) -> None:
        self.ready_s, self.held_s, self.looks, self.look_s = ready_s, held_s, looks, look_s
        self.began_s = float("inf")
        self.broken_off = False

    @asynccontextmanager
    async def request(self, method: str, url: str, *, timeout: aiohttp.ClientTimeout, **_: Any) -> AsyncIterator[Any]:
        async def read() -> bytes:
            now_s = asyncio.get_running_loop().time()
            self.began_s = min(self.began_s, now_s)
            if url.endswith("/metrics"):
                if not self.looks:
                    raise aiohttp.ClientConnectionError("gone")
                await asyncio.sleep(self.look_s)
                return f"{DEFERRED} {int(now_s < self.began_s + self.held_s)}\n".encode()
            try:
                async with asyncio.timeout(timeout.total):
                    await asyncio.sleep(self.ready_s)
            except (TimeoutError, asyncio.CancelledError):
                self.broken_off = True
                raise
            return reply(choice([5, 1]))[1]

        yield SimpleNamespace(status=200, read=read)


def asked(server: Server, priority: int) -> tuple[str, float]:
    """What came of a request, and when."""

    async def ask() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        client = VllmClient("http://a", server)
        try:
            await client.generate([5], n=1, max_tokens=3, stop_token_ids=[1], timeout_s=TIMEOUT_S, priority=priority)
        except Unreachable as late:
            return str(late), loop.time() - began_s
        return "answered", loop.time() - began_s

    return virtually(ask())


@pytest.mark.parametrize("priority", [VLLM_PRIORITY["training"], VLLM_PRIORITY["evaluation"]])
@pytest.mark.parametrize(("ready_s", "held_s"), [(9, 0), (11, 10.5), (95, 90.5)])
def test_time_in_which_answers_are_held_is_not_the_requests(priority: int, ready_s: float, held_s: float) -> None:
    assert asked(Server(ready_s, held_s), priority) == ("answered", ready_s)


@pytest.mark.parametrize(("held_s", "late_s"), [(0, 10), (10.5, 20), (1000, 100)])
def test_what_is_held_no_more_is_late_and_nothing_is_held_for_ever(held_s: float, late_s: float) -> None:
    server = Server(1000, held_s)
    said, took_s = asked(server, VLLM_PRIORITY["training"])
    assert ("no answer within" in said, took_s) == (True, late_s)
    assert server.broken_off, "the replica goes on with what nobody waits for"


def test_a_replica_that_says_nothing_holds_nothing() -> None:
    assert asked(Server(1000, 1000, looks=False), VLLM_PRIORITY["training"])[1] == 10


def test_an_answer_that_comes_during_the_look_is_not_kept_waiting() -> None:
    """As one that fails then: its place would be taken, and nothing asked for."""
    assert asked(Server(11, 0, look_s=3), VLLM_PRIORITY["training"]) == ("answered", 11)


def test_users_requests_are_never_held() -> None:
    assert asked(Server(1000, 1000), VLLM_PRIORITY["free"])[1] == 10


def test_who_leaves_breaks_the_request_off() -> None:
    server = Server(1000, 1000)

    async def leave() -> None:
        client = VllmClient("http://a", server)
        request = client.generate(
            [5], n=1, max_tokens=3, stop_token_ids=[1], timeout_s=TIMEOUT_S, priority=VLLM_PRIORITY["training"]
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(request, 1.0)

    virtually(leave())
    assert server.broken_off

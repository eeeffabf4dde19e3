"""Rewards over HTTP: who may send, what is taken whole or not at all, and what a sender is told."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving_bridge.database import DatabaseError
from serving_bridge.delayed_rewards import MAX_BODY_BYTES, Arrival, IngressError, Outcome, RewardIngress
from serving_bridge.queue import Delay, TrajectoryQueue
from tests.support.trajectories import make_group, pending

_TOKEN = "a-token-for-tests-only"
_REWARD = b'{"trajectory_id": "run/0/0", "reward": 1}'
Send = Callable[..., Awaitable[tuple[int, Any]]]


def sending(bring: Callable[[Sequence[Arrival]], list[Outcome]], work: Callable[[Send], Awaitable[None]]) -> list[str]:
    """Runs `work` against an ingress; returns what it logged."""
    logged: list[str] = []

    async def run() -> None:
        ingress = RewardIngress(bring, host="127.0.0.1", port=0, token=_TOKEN, log=logged.append)
        url = await ingress.start()
        try:
            async with aiohttp.ClientSession() as session:

                async def send(body: bytes, token: str = f"Bearer {_TOKEN}") -> tuple[int, Any]:
                    headers = {"Authorization": token} if token else {}
                    async with session.post(f"{url}/v1/rewards", data=io.BytesIO(body), headers=headers) as response:
                        return response.status, await response.json()

                await work(send)
        finally:
            await ingress.close()

    asyncio.run(run())
    return logged


def never(arrivals: Sequence[Arrival]) -> list[Outcome]:
    raise AssertionError("nothing was to be stored")


def test_rewards_are_stored_and_their_outcomes_told(tmp_path: Path) -> None:
    queue = TrajectoryQueue(tmp_path / "state.db")
    queue.producer.put([(0, pending(make_group("run/0")))], delays={0: Delay(60.0)})

    async def work(send: Send) -> None:
        body = _REWARD + b'\n\n{"trajectory_id": "run/0/1", "reward": 0.5}\n'
        assert await send(body) == (200, {"outcomes": ["joined", "joined"]})
        assert await send(body) == (200, {"outcomes": ["duplicate", "duplicate"]})

    sending(queue.rewards.bring, work)
    assert queue.admin.progress().num_ready == 1
    queue.close()


@pytest.mark.parametrize("token", ["", "Bearer ", f"Bearer {_TOKEN}x", _TOKEN, "Bearer \xfc"])
def test_nobody_sends_without_the_token(token: str) -> None:
    async def work(send: Send) -> None:
        status, told = await send(_REWARD, token=token)
        assert (status, told["error"]["message"]) == (401, "expected the header Authorization: Bearer TOKEN")

    sending(never, work)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 422, "the body holds no reward"),
        (_REWARD + b"\n{", 422, "line 2: no reward"),
        (b"\xff\xfe", 422, "line 1: no reward"),
        (b"[" * 100_000, 422, "line 1: no reward"),
        (b'{"trajectory_id": "\\ud800", "reward": 1}', 422, "line 1: "),
        ((_REWARD + b"\n") * 1001, 422, "more than 1000 rewards"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "at most 1048576 bytes"),
    ],
)
def test_a_body_that_is_no_list_of_rewards_stores_nothing(body: bytes, status: int, message: str) -> None:
    async def work(send: Send) -> None:
        found, told = await send(body)
        assert found == status
        assert message in told["error"]["message"]
        assert len(told["error"]["message"]) < 1000

    sending(never, work)


def test_a_database_that_is_away_is_a_reason_to_come_back_and_its_name_is_not_told() -> None:
    def away(arrivals: Sequence[Arrival]) -> list[Outcome]:
        raise DatabaseError("postgresql://host/db is away")

    async def work(send: Send) -> None:
        assert await send(_REWARD) == (
            503,
            {"error": {"message": "the rewards could not be stored now", "code": 503}},
        )

    assert sending(away, work) == ["rewards could not be stored: postgresql://host/db is away"]


def test_an_address_that_can_not_be_had_is_an_error() -> None:
    async def run() -> None:
        ingress = RewardIngress(never, host="no.such.host.invalid", port=0, token=_TOKEN)
        with pytest.raises(IngressError, match=r"no\.such\.host\.invalid:0 can't be listened at"):
            await ingress.start()

    asyncio.run(run())

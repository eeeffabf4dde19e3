"""Users and training on one vLLM server: held answers come out as if nothing had held them, and users never queue."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from serving_bridge.settings.priorities import VLLM_PRIORITY
from serving_bridge.vllm.answers import Completion
from serving_bridge.vllm.client import DEFERRED, USERS_KV_USAGE
from tests.support.weight_world import SETTINGS, TOLERANCE, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest_plugins = ["tests.support.weight_fixtures"]

TRAINING_TOKENS, USER_TOKENS = 200, 20


def training(world: World, count: int) -> asyncio.Task[list[Completion]]:
    """So many answers for training, which begin together."""
    return asyncio.ensure_future(
        world.client.generate(
            [5, 6, 7], n=count, max_tokens=TRAINING_TOKENS, stop_token_ids=(), timeout_s=120, seed=3,
            priority=VLLM_PRIORITY["training"],
        )
    )  # fmt: skip


async def user(world: World, tokens: int = USER_TOKENS) -> Completion:
    (answer,) = await world.client.generate(
        [9, 8, 70], n=1, max_tokens=tokens, stop_token_ids=(), timeout_s=120, greedy=True,
        priority=VLLM_PRIORITY["paid"],
    )  # fmt: skip
    return answer


async def begun(world: World, task: asyncio.Task[Any]) -> None:
    """Returns once training's answers run."""
    while not (await world.client.metrics())["vllm:num_requests_running"]:
        assert not task.done(), "training's answers ended before they were seen"


def test_held_answers_are_what_they_would_have_been(world: World) -> None:
    world.update(world.model_a)
    deferred: list[float] = []

    async def play() -> tuple[Any, Any, list[Completion]]:
        alone = await training(world, 16)
        beside = training(world, 16)
        await begun(world, beside)
        heard: list[Completion] = []
        while not beside.done():
            answering = asyncio.ensure_future(user(world))
            while not answering.done():
                deferred.append((await world.client.metrics())[DEFERRED])
            heard.append(await answering)
        return alone, await beside, heard

    alone, beside, heard = world.run(play())
    for want, got in zip(alone, beside, strict=True):
        assert got.tokens.tolist() == want.tokens.tolist()
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE, rtol=0)
    assert len({tuple(answer.tokens.tolist()) for answer in heard}) == 1
    assert max(deferred) >= 8


def test_users_wait_for_no_place_of_trainings(world: World) -> None:
    """Training has every place. The user's answer comes last and ends first; training's lose no token."""
    world.update(world.model_a)

    async def play() -> tuple[bool, float, Any, Any]:
        alone = await training(world, SETTINGS.max_num_seqs)
        before = (await world.client.metrics())["vllm:num_preemptions_total"]
        beside = training(world, SETTINGS.max_num_seqs)
        await begun(world, beside)
        await user(world)
        is_first = not beside.done()
        answers = await beside
        return is_first, (await world.client.metrics())["vllm:num_preemptions_total"] - before, alone, answers

    is_first, preemptions, alone, beside = world.run(play())
    assert is_first
    assert preemptions >= 1
    assert [answer.tokens.tolist() for answer in beside] == [answer.tokens.tolist() for answer in alone]


def test_memory_that_training_holds_is_not_users(world: World) -> None:
    world.update(world.model_a)

    async def play() -> tuple[dict[str, float], list[float]]:
        beside, seen = training(world, 16), []
        await begun(world, beside)
        alone = await world.client.metrics()
        answering = asyncio.ensure_future(user(world, TRAINING_TOKENS))
        while not answering.done():
            seen.append((await world.client.metrics())[USERS_KV_USAGE])
        await asyncio.gather(answering, beside)
        return alone, [*seen, (await world.client.metrics())[USERS_KV_USAGE]]

    alone, seen = world.run(play())
    num_blocks = 4 * SETTINGS.max_num_seqs * SETTINGS.max_model_len // 32
    most = -(-(3 + TRAINING_TOKENS) // 32) / (num_blocks - 1)
    assert alone["vllm:kv_cache_usage_perc"] > most, "training holds more than a user can"
    assert alone[USERS_KV_USAGE] == 0
    assert 0 < max(seen) <= most * (1 + 1e-9)
    assert seen[-1] == 0

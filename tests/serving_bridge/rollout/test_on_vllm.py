"""Dialogs and broken-off answers on a real vLLM server: their log-probs are its own for the whole sequence."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner_jax.runtime.waits import Waits
from rewards.contracts.environment import EpisodeState, Outcome, Reply
from rewards.contracts.task import Problem, RewardResult, scored
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.text.chat_template import environment
from serving_bridge.text.tokenizer import load_tokenizer
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm.transport import http_session
from tests.support.rollout_world import Inline
from tests.support.weight_world import EOS, TOLERANCE, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests on real servers: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]

PROMPT = [5, 6, 7]
#: of all dialogs together: fewer, and most would be aborted before their first token
TOKENS_BETWEEN_ABORTS = 24
ROLLOUT = RolloutSettings(max_prompt_tokens=8, max_tokens=60, group_size=4, temperature=1.3, max_episode_tokens=256)


class Insistent:
    """Asks on, whatever is answered, and pays a little for every answer."""

    version, max_turns = "insistent@1", 3

    def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem)

    def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        after = EpisodeState(state.problem, state.turn + 1)
        is_over = reply.is_last or reply.finish_reason != "stop" or after.turn == self.max_turns
        observation = None if is_over else "".join(chr(0x100 + token) for token in (70, 71, 3))
        return Outcome(0.25, {}, "fail", observation, after)


async def played(world: World, version: int, settings: RolloutSettings) -> tuple[list[Episode], Counter[str]]:
    """Eight dialogs at once, all of which are aborted again and again while they are sampled."""
    replica = world.replica
    count: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    async with http_session() as session:
        token = replica.client.token
        dispatcher = Dispatcher(
            settings, lambda row: VllmClient(row.url, session, vocab_size=128, token=token), Waits(loop.time)
        )
        dispatcher.update([ReplicaRow("a", replica.base_url, "healthy", version, 0, 0.0)])
        sampler = Sampler(
            dispatcher, settings, (EOS, *range(100, 104)), count=count, log=lambda *_, **__: None, rng=random.Random(0)
        )
        encoder = PromptEncoder(
            load_tokenizer(world.folder / "a"), template="{question}", chat=False, max_prompt_tokens=8
        )
        player = Player(Insistent(), encoder, sampler, settings, scoring=Inline(), count=count)
        shared = Prefix()
        playing = asyncio.gather(*(player.play(Problem(i, "", "", {}), PROMPT, shared) for i in range(8)))
        aborted_at = await num_sampled(replica.client)
        while not playing.done():
            await asyncio.sleep(0.02)
            sampled = await num_sampled(replica.client)
            if count["resumed"] < 8 and sampled - aborted_at >= TOKENS_BETWEEN_ABORTS:
                await replica.client.control().abort_all()
                aborted_at = sampled
        return await playing, count


class TenQuestions:
    """A program that asks ten times, and shows all that was said each time."""

    max_turns, processes = 10, 8

    def run(self, problem: Problem, base_url: str) -> RewardResult | None:
        from openai import OpenAI

        client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
        asked: list[Any] = []
        for turn in range(10):
            asked.append({"role": "user", "content": chr(0x100 + 40 + (turn + problem.index) % 20)})
            answer = client.chat.completions.create(model="policy", messages=asked, max_tokens=12)
            asked.append(answer.choices[0].message.model_dump(exclude_none=True))
        return scored(1.0, {})

    def judge(self, problem: Problem, answer: str, finish_reason: str) -> RewardResult:
        raise AssertionError


async def played_by_agents(world: World, version: int, settings: RolloutSettings) -> tuple[list[Episode], Counter[str]]:
    """Eight programs at once, each with a session of its own."""
    replica, count = world.replica, Counter[str]()
    template = "{% for m in messages %}{{ '\u0146' if m.role == 'user' else '' }}{{ m.content }}"
    template += "{{ '<eos>' if m.role == 'assistant' else '\u0103' }}{% endfor %}"
    tokenizer = replace(
        load_tokenizer(world.folder / "a"), chat_template=environment().from_string(template), turn_end=EOS
    )
    async with http_session() as session:
        dispatcher = Dispatcher(
            settings,
            lambda row: VllmClient(row.url, session, vocab_size=128, token=replica.client.token),
            Waits(asyncio.get_running_loop().time),
        )
        dispatcher.update([ReplicaRow("a", replica.base_url, "healthy", version, 0, 0.0)])
        quiet: Any = lambda *_, **__: None  # noqa: E731
        sampler = Sampler(dispatcher, settings, (EOS,), count=count, log=quiet, rng=random.Random(0))
        encoder = PromptEncoder(tokenizer, template="{question}", chat=True, max_prompt_tokens=8)
        async with AgentPlayer(TenQuestions(), encoder, sampler, settings, count=count) as player:
            return list(await asyncio.gather(*(player.play(Problem(i, "", "", {})) for i in range(8)))), count


async def num_sampled(client: VllmClient) -> float:
    """Tokens that a server has sampled since its start."""
    return (await client.metrics())["vllm:generation_tokens_total"]


def assert_honest(world: World, version: int, episodes: list[Episode]) -> None:
    """Every sampled token's log-prob is what the server gives for the whole sequence as a prompt."""

    async def own(tokens: list[int]) -> np.ndarray:
        return await world.client.prompt_logprobs(tokens, timeout_s=60)

    origin = Origin("run", len(episodes), ROLLOUT, Insistent.version, "")
    for found in make_trajectories(origin, 0, episodes):
        found.validate()
        sampled = np.flatnonzero(found.loss_mask)
        expected = world.run(own(found.tokens.tolist()))[sampled - 1]
        np.testing.assert_allclose(found.behavior_logprobs[sampled], expected, atol=TOLERANCE)
        assert set(found.policy_version[sampled].tolist()) == {version}


def options(**changes: Any) -> RolloutSettings:
    """At temperature 1, at which prompt log-probs are given."""
    return ROLLOUT.model_copy(update={"temperature": 1.0, **changes})


def test_dialogs_whose_answers_are_aborted_have_the_server_s_own_logprobs(world: World) -> None:
    version = world.update(world.model_a).version
    episodes, count = world.run(played(world, version, options()))
    assert count["resumed"] >= 4, count
    assert count["environment_turns"] >= 4, count
    assert_honest(world, version, episodes)


def test_answers_in_segments_have_the_server_s_own_logprobs(world: World) -> None:
    version = world.update(world.model_a).version
    episodes, count = world.run(played(world, version, options(segment_tokens=7)))
    assert count["segments"] >= 16, count
    assert_honest(world, version, episodes)


def test_ten_turns_of_a_program_have_the_server_s_own_logprobs(world: World) -> None:
    version = world.update(world.model_a).version
    episodes, count = world.run(played_by_agents(world, version, options()))
    assert [len(episode.turns) for episode in episodes] == [10] * 8
    assert (count["agent_answers"], count["agent_side_answers"], count["agent_rebuilt"]) == (80, 0, 0)
    assert_honest(world, version, episodes)

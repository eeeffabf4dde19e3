"""Ten turns with calls of tools on a real vLLM server: every sampled token has the server's own log-prob."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner_jax.runtime.waits import Waits
from rewards.contracts import EpisodeState, Message, Outcome, Problem, Reply
from rewards.tools import Tool, Toolbox, parse_calls
from rewards.tools.built_in import calculator_definition
from rewards.tools.calculator import calculate
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm.transport import http_session
from tests.support.letters import letters
from tests.support.rollout_world import Inline
from tests.support.weight_world import EOS, TOLERANCE, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests on real servers: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]

TURNS, EPISODES = 10, 4
SETTINGS = RolloutSettings(max_prompt_tokens=14, max_tokens=6, group_size=EPISODES, max_episode_tokens=256)


class Calculating:
    """Reads a call into whatever a random model says: its length, plus one; every third turn the call is malformed."""

    version, max_turns = "calculating@1", TURNS
    tools = (calculator_definition(None),)  # type: ignore[arg-type]

    def __init__(self) -> None:
        async def run(arguments: dict[str, str], row: object) -> str:
            return calculate(arguments["expression"]) + "<eos>a:"

        tool = Tool(self.tools[0], run)  # type: ignore[arg-type]
        self._toolbox = Toolbox([tool], timeout_s=5, max_calls=2, max_characters=100)

    async def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem)

    async def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        after = replace(state, turn=state.turn + 1, memory=reply.text)
        return Outcome(0.25, {}, "fail", None if after.turn == TURNS else (), after)

    async def observe(self, state: EpisodeState) -> tuple[Message, ...]:
        call = {"name": "calculator", "arguments": {"expression": f"{len(state.memory)} + 1"}}
        text = f"<tool_call>{json.dumps(call)}</tool_call>" if state.turn % 3 else "<tool_call>?"
        return tuple(result.message for result in await self._toolbox.run(parse_calls(text).calls, {}))

    async def close(self, state: EpisodeState) -> None: ...


async def played(world: World, version: int, encoder: PromptEncoder) -> list[Episode]:
    replica, count = world.replica, Counter[str]()
    async with http_session() as session:
        token = replica.client.token
        dispatcher = Dispatcher(
            SETTINGS,
            lambda row: VllmClient(row.url, session, vocab_size=128, token=token),
            Waits(asyncio.get_running_loop().time),
        )
        dispatcher.update([ReplicaRow("a", replica.base_url, "healthy", version, 0, 0.0)])
        stops = (EOS, *range(100, 110))
        sampler = Sampler(dispatcher, SETTINGS, stops, count=count, log=lambda *_, **__: None, rng=random.Random(0))
        player = Player(Calculating(), encoder, sampler, SETTINGS, scoring=Inline(), count=count)  # type: ignore[arg-type]
        shared, problem = Prefix(), Problem(0, "2+2?", "", {})
        prompt = encoder.tokenizer.encode_prompt("2+2?", chat=True)
        return await asyncio.gather(*(player.play(problem, prompt, shared) for _ in range(EPISODES)))


def test_ten_turns_with_calls_have_the_server_s_own_logprobs(world: World, tmp_path: Path) -> None:
    tokenizer = letters(tmp_path / "letters")
    encoder = PromptEncoder(tokenizer, template="{question}", chat=True, max_prompt_tokens=14)
    version = world.update(world.model_a).version
    episodes = world.run(played(world, version, encoder))

    async def own(tokens: list[int]) -> np.ndarray:
        return await world.client.prompt_logprobs(tokens, timeout_s=60)

    worst = 0.0
    for episode, found in zip(
        episodes, make_trajectories(Origin("run", EPISODES, SETTINGS, "v", ""), 0, episodes), strict=True
    ):
        found.validate()
        assert len(episode.turns) == TURNS
        sampled = np.flatnonzero(found.loss_mask)
        expected = world.run(own(found.tokens.tolist()))[sampled - 1]
        worst = max(worst, float(np.abs(found.behavior_logprobs[sampled] - expected).max()))
        assert set(found.policy_version[sampled].tolist()) == {version}
        assert found.rewards.sum() == 0.25 * TURNS
        for turn in episode.turns[1:]:
            text = tokenizer.backend.decode(turn.given, skip_special_tokens=False)
            assert text.startswith(("t:", "<eos>t:"))
            assert text.endswith("<eos>a:")
            # A result that holds the end token ended nothing.
            assert list(turn.given).count(EOS) == 1 + text.startswith("<eos>")
    assert worst <= TOLERANCE

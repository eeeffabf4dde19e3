"""A taskset of `verifiers` with a tool, unmodified, against a real vLLM server: log-probs are the server's own."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import branches_of
from learner_jax.runtime.waits import Waits
from rewards.contracts import Problem
from rewards.environments import AgentEnvironment
from rewards.settings import TaskSettings
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.sampling import Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm.transport import http_session
from tests.support.letters import letters
from tests.support.rollout_world import AdditionTask
from tests.support.weight_world import EOS, TOLERANCE, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("verifiers.v1", reason="needs weir[verifiers]")
pytestmark = pytest.mark.slow

#: one world for all tests on real servers: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]

TURNS, EPISODES = 10, 4
TASKSETS = Path(__file__).parents[2] / "support" / "tasksets"
ROLLOUT = RolloutSettings(max_prompt_tokens=20, max_tokens=6, group_size=EPISODES, max_episode_tokens=256)
TASK = TaskSettings.model_validate(
    {
        "provider": "rows",
        "environment": "agent",
        "chat": True,
        "turns": TURNS,
        "episode": {"agent": "rewards.others.verifiers:play", "agent_processes": 2, "wall_s": 500.0},
    }
)


async def played(world: World, version: int, folder: Path, problem: Problem) -> tuple[list[Episode], Counter[str]]:
    replica, count = world.replica, Counter[str]()
    encoder = PromptEncoder(letters(folder), template="{question}", chat=True, max_prompt_tokens=20)
    environment = AgentEnvironment(AdditionTask(), TASK)
    try:
        async with http_session() as session:
            dispatcher = Dispatcher(
                ROLLOUT,
                lambda row: VllmClient(row.url, session, vocab_size=128, token=replica.client.token),
                Waits(asyncio.get_running_loop().time),
            )
            dispatcher.update([ReplicaRow("a", replica.base_url, "healthy", version, 0, 0.0)])
            quiet: Any = lambda *_, **__: None  # noqa: E731
            sampler = Sampler(dispatcher, ROLLOUT, (EOS,), count=count, log=quiet, rng=random.Random(0))
            async with AgentPlayer(environment, encoder, sampler, ROLLOUT, count=count) as player:
                return await player.play_group(problem, [], EPISODES), count
    finally:
        environment.close()


def test_ten_turns_with_calls_have_the_server_s_own_logprobs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(TASKSETS)
    from rewards.others import verifiers

    harness = {"id": "vf_adding", "insists": TURNS - 1, "shows_tools": False}
    row = next(iter(verifiers.rows("vf_adding", env={"agent": {"harness": harness}})))
    version = world.update(world.model_a).version
    episodes, count = world.run(played(world, version, tmp_path / "letters", Problem(0, row["question"], "", row)))
    answers = count["agent_answers"]
    assert (answers, count["agent_side_answers"], count["agent_rebuilt"]) == (TURNS * EPISODES, 0, 0)

    async def own(tokens: list[int]) -> np.ndarray:
        return await world.client.prompt_logprobs(tokens, timeout_s=60)

    worst = 0.0
    for record in make_trajectories(Origin("run", EPISODES, ROLLOUT, "v", ""), 0, episodes):
        record.validate()
        assert record.is_judged
        assert record.reward_parts["turns"] == TURNS
        for sequence in branches_of(record):
            sampled = np.flatnonzero(sequence.loss_mask)
            expected = world.run(own(sequence.tokens.tolist()))[sampled - 1]
            worst = max(worst, float(np.abs(sequence.behavior_logprobs[sampled] - expected).max()))
            assert set(sequence.policy_version[sampled].tolist()) == {version}
    assert worst <= TOLERANCE
    print(f"{answers} answers, largest difference {worst:.1e}")

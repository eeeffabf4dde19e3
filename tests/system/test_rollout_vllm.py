"""Dialogs and broken-off answers on a real vLLM server: their log-probs are its own for the whole sequence."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.runtime.waits import Waits
from rewards.contracts.environment import EpisodeState, Outcome, Reply
from rewards.contracts.task import Problem
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.fleet.replica import Replica
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.text.tokenizer import load_tokenizer
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm.transport import http_session
from tests.support.rollout_world import Inline
from tests.support.weight_world import EOS, SETTINGS, TOLERANCE, make_model

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

PROMPT = [5, 6, 7]
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Replica, Path]]:
    folder = tmp_path_factory.mktemp("rollout")
    make_model(folder / "model", 0)
    with asyncio.Runner() as runner:
        session_context = http_session()
        session = runner.run(session_context.__aenter__())
        replica = Replica("replica-0", folder / "model", SETTINGS, session, log_path=folder / "server.log")  # type: ignore[arg-type]
        try:
            runner.run(replica.start())
            runner.run(replica.client.name_version(7))
            yield runner, replica, folder / "model"
        finally:
            runner.run(replica.stop())
            runner.run(session_context.__aexit__(None, None, None))


async def played(replica: Replica, model: Path, settings: RolloutSettings) -> tuple[list[Episode], Counter[str]]:
    """Eight dialogs at once, all of which are aborted again and again while they are sampled."""
    count: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    async with http_session() as session:
        token = replica.client.token
        dispatcher = Dispatcher(
            settings, lambda row: VllmClient(row.url, session, vocab_size=128, token=token), Waits(loop.time)
        )
        dispatcher.update([ReplicaRow("a", replica.base_url, "healthy", 7, 0, 0.0)])
        sampler = Sampler(
            dispatcher, settings, (EOS, *range(100, 104)), count=count, log=lambda *_, **__: None, rng=random.Random(0)
        )
        encoder = PromptEncoder(load_tokenizer(model), template="{question}", chat=False, max_prompt_tokens=8)
        player = Player(Insistent(), encoder, sampler, settings, scoring=Inline(), count=count)
        shared = Prefix()
        playing = asyncio.gather(*(player.play(Problem(i, "", "", {}), PROMPT, shared) for i in range(8)))
        while not playing.done():
            await asyncio.sleep(0.08)
            if count["resumed"] < 8:
                await replica.client.abort_all()
        return await playing, count


def assert_honest(runner: asyncio.Runner, replica: Replica, episodes: list[Episode]) -> None:
    """Every sampled token's log-prob is what the server gives for the whole sequence as a prompt."""

    async def own(tokens: list[int]) -> np.ndarray:
        return await replica.client.prompt_logprobs(tokens, timeout_s=60)

    origin = Origin("run", len(episodes), ROLLOUT, Insistent.version, "")
    for found in make_trajectories(origin, 0, episodes):
        found.validate()
        sampled = np.flatnonzero(found.loss_mask)
        expected = runner.run(own(found.tokens.tolist()))[sampled - 1]
        np.testing.assert_allclose(found.behavior_logprobs[sampled], expected, atol=TOLERANCE)
        assert set(found.policy_version[sampled].tolist()) == {7}


def options(**changes: Any) -> RolloutSettings:
    """At temperature 1, at which prompt log-probs are given."""
    return ROLLOUT.model_copy(update={"temperature": 1.0, **changes})


def test_dialogs_whose_answers_are_aborted_have_the_server_s_own_logprobs(
    server: tuple[asyncio.Runner, Replica, Path],
) -> None:
    runner, replica, model = server
    episodes, count = runner.run(played(replica, model, options()))
    assert count["resumed"] >= 4, count
    assert count["environment_turns"] >= 4, count
    assert_honest(runner, replica, episodes)


def test_answers_in_segments_have_the_server_s_own_logprobs(server: tuple[asyncio.Runner, Replica, Path]) -> None:
    runner, replica, model = server
    episodes, count = runner.run(played(replica, model, options(segment_tokens=7)))
    assert count["segments"] >= 16, count
    assert_honest(runner, replica, episodes)

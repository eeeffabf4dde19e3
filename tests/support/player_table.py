"""A player of dialogs with one scripted replica, and what it counted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from learner_jax.contracts.weights import Trajectory
from learner_jax.runtime.waits import Waits
from rewards.environments import FeedbackEnvironment
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.text.tokenizer import Tokenizer
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_world import AdditionTask, FakeReplica, FakeSession, Inline, choice, reply


class Table:
    """A player with one scripted replica, and what it counted."""

    def __init__(self, tokenizer: Tokenizer, replicas: dict[str, FakeReplica], *, turns: int = 1, **options: Any):
        given = {"max_prompt_tokens": 12, "max_tokens": 8, "max_attempts": 3, "group_size": 2}
        self.settings = RolloutSettings(**(given | options))
        session = FakeSession(replicas)
        self.dispatcher = Dispatcher(
            self.settings, lambda row: VllmClient(row.url, session), Waits(asyncio.get_running_loop().time)
        )
        self.dispatcher.update([ReplicaRow(name, f"http://{name}", "healthy", 1, 0, 0.0) for name in replicas])
        self.count: Counter[str] = Counter()
        self.encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=12)
        self.sampler = Sampler(
            self.dispatcher,
            self.settings,
            tokenizer.eos_ids,
            count=self.count,
            log=lambda *_, **__: None,
            rng=random.Random(0),
        )
        self.task = AdditionTask()
        environment = FeedbackEnvironment(self.task, turns=turns, discount=0.5, feedback=" no{reasons}\n")
        self.player = Player(environment, self.encoder, self.sampler, self.settings, scoring=Inline(), count=self.count)
        self.problem = self.task.problem("train", 0)
        self.prompt = self.encoder.encode(self.problem) or []

    async def play(self) -> Episode:
        return await self.player.play(self.problem, self.prompt, Prefix())

    def group(self, *episodes: Episode) -> list[Trajectory]:
        origin = Origin("run", len(episodes), self.settings, "addition@1", "fingerprint")
        found = make_trajectories(origin, 0, episodes)
        for trajectory in found:
            trajectory.validate()
        return found

    def trajectory(self, episode: Episode) -> Trajectory:
        (found,) = self.group(episode)
        return found


def says(tokenizer: Tokenizer, text: str, version: str = "1", **options: Any) -> Callable[[Any], Any]:
    """A script that answers with the text's tokens and the end token."""
    tokens = [*tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer.eos_ids[0]]
    return lambda _: reply(choice(tokens, logprobs=[-0.5] * len(tokens), spans=[(version, 0, len(tokens))], **options))

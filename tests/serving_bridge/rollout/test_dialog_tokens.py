"""Dialogs of any course: what is trained on is what the engine sampled, and each request goes on from exactly that."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner_jax.batches.sequences import sequences
from learner_jax.contracts.trajectory import NOT_SAMPLED, Trajectory, decode_group, encode_group
from learner_jax.runtime.waits import Waits
from rewards.contracts.environment import EpisodeState, Outcome, Reply
from rewards.contracts.task import Problem
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.routing.dispatch import Dispatcher
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.vllm.client import VllmClient
from tests.support.properties import examples
from tests.support.rollout_world import EOS, VOCAB, FakeReplica, FakeSession, Inline, choice, reply, virtually

SETTINGS = RolloutSettings(max_prompt_tokens=6, max_tokens=8, max_attempts=4, group_size=1, max_episode_tokens=44)
PROBLEM = Problem(7, "question", "answer", {})
TURNS = 3
TOKENS = st.integers(2, VOCAB - 1)


@dataclass
class Engine:
    """A server that samples what is drawn, in pieces of any length, and fails now and then.

    Attributes:
      contexts: token ids of every request, also of those that failed, and how many tokens were sampled before it.
      sampled: (token, log-prob, policy version) of all that it handed out, in order.
    """

    data: st.DataObject
    version: int = 0
    num_failed: int = 0
    contexts: list[tuple[list[int], int]] = field(default_factory=list)
    sampled: list[tuple[int, float, int]] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.contexts.append((body["token_ids"], len(self.sampled)))
        most = body["sampling_params"]["max_tokens"]
        if self.num_failed < 2 and self.data.draw(st.integers(0, 5), "fails") == 5:
            self.num_failed += 1
            return 503, b"busy"
        self.num_failed = 0
        ends = self.data.draw(st.sampled_from(["stop", "abort", "abort", "length"]), "ends by")
        tokens = self.data.draw(st.lists(TOKENS, min_size=most if ends == "length" else 1, max_size=most), "tokens")
        if ends == "stop":
            tokens[-1] = EOS
        logprobs = [-self.data.draw(st.integers(0, 640)) / 64 for _ in tokens]
        borders = sorted(self.data.draw(st.sets(st.integers(1, len(tokens)), max_size=2))) + [len(tokens)]
        spans = []
        for start, end in pairwise([0, *dict.fromkeys(borders)]):
            self.version += self.data.draw(st.integers(0, 2))
            spans.append((str(self.version), start, end))
            self.sampled += [(tokens[i], logprobs[i], self.version) for i in range(start, end)]
        return reply(choice(tokens, ends, logprobs=logprobs, spans=spans))


@dataclass
class Dialog:
    """An environment and an encoder that say what is drawn; texts are lossy, so that none can be encoded again.

    Attributes:
      turns: (ids that were sampled until then, reward, ids of the observation) after each answer.
    """

    engine: Engine
    max_turns: int = TURNS
    version: str = "drawn@1"
    turns: list[tuple[int, float | None, list[int]]] = field(default_factory=list)

    def reset(self, problem: Problem) -> EpisodeState:
        return EpisodeState(problem)

    def step(self, state: EpisodeState, answer: Reply) -> Outcome:
        draw = self.engine.data.draw
        verdict = draw(st.sampled_from(["pass", "fail", "fail", "error"]), "verdict")
        reward = None if verdict == "error" else draw(st.integers(-8, 8)) / 8
        ends = answer.is_last or verdict == "error" or not draw(st.sampled_from([False, True, True]), "goes on")
        given = [] if ends else draw(st.lists(TOKENS, min_size=1, max_size=SETTINGS.max_prompt_tokens), "observation")
        self.turns.append((len(self.engine.sampled), reward, given))
        parts = {} if reward is None else {"part": reward}
        reasons = ("drawn",) if reward is None else ()
        return Outcome(reward, parts, verdict, None if ends else "...", EpisodeState(state.problem), reasons)  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Dialog:
        return self

    def decode(self, tokens: list[int]) -> str:
        return "".join("ab"[token % 2] for token in tokens)

    def observation(self, text: str, *, after: int) -> list[int]:
        assert after == self.engine.sampled[-1][0]
        return self.turns[-1][2]


async def played(prompt: list[int], dialog: Dialog) -> Trajectory:
    replica = FakeReplica()
    replica.handle = lambda route, body: _now(dialog.engine.answer(body))  # type: ignore[method-assign]
    session = FakeSession({"a": replica})
    dispatcher = Dispatcher(SETTINGS, lambda row: VllmClient(row.url, session), Waits(asyncio.get_running_loop().time))
    dispatcher.update([ReplicaRow("a", "http://a", "healthy", 1, 0, 0.0)])
    count = Counter[str]()
    sampler = Sampler(dispatcher, SETTINGS, [EOS], count=count, log=lambda *_, **__: None, rng=random.Random(0))
    player = Player(dialog, dialog, sampler, SETTINGS, scoring=Inline(), count=count)  # type: ignore[arg-type]
    episode = await player.play(PROBLEM, prompt, Prefix())
    (found,) = make_trajectories(Origin("run", 1, SETTINGS, "drawn@1", "fingerprint"), PROBLEM.index, [episode])
    return found


async def _now(answer: tuple[int, bytes]) -> tuple[int, bytes]:
    return answer


@examples(2.5)
@given(st.lists(TOKENS, min_size=1, max_size=SETTINGS.max_prompt_tokens), st.data())
def test_what_is_trained_on_is_what_was_sampled(prompt: list[int], data: st.DataObject) -> None:
    dialog = Dialog(Engine(data))
    found = virtually(played(prompt, dialog))
    engine, last_reward = dialog.engine, dialog.turns[-1][1]

    # What the dialog was, told by the engine and the environment alone: (id, log-prob, version, turn, reward).
    dull = (0.0, NOT_SAMPLED)
    expected = [(token, *dull, 0, 0.0) for token in prompt]
    begun = 0
    for turn, (until, reward, given_next) in enumerate(dialog.turns):
        expected += [(*sampled, turn, 0.0) for sampled in engine.sampled[begun:until]]
        if last_reward is not None:
            expected[-1] = (*expected[-1][:4], reward)
        expected += [(token, *dull, turn + 1, 0.0) for token in given_next]
        begun = until
    arrays = (found.tokens, found.behavior_logprobs, found.policy_version, found.turn, found.rewards)
    assert list(zip(*(array.tolist() for array in arrays), strict=True)) == expected
    assert found.loss_mask.tolist() == [version != NOT_SAMPLED for _, _, version, _, _ in expected]

    # Every request went on from exactly what was there, and the last answer ends the record.
    whole = found.tokens.tolist()
    for context, num_sampled in engine.contexts:
        num_given = sum(len(given) for until, _, given in dialog.turns if until <= num_sampled)
        assert context == whole[: len(prompt) + num_sampled + num_given]
    assert len(whole) <= SETTINGS.max_episode_tokens

    # The same tokens and mask in the queue's record, and in the rows that the learner trains on.
    (recorded,) = decode_group(encode_group([found]))
    rows = sequences([[recorded]], sequence_length=SETTINGS.max_episode_tokens + 3)
    assert rows.tokens[0].tolist() == whole + [0] * (rows.tokens.shape[1] - len(whole))
    assert np.flatnonzero(rows.sampled[0]).tolist() == np.flatnonzero(found.loss_mask).tolist()

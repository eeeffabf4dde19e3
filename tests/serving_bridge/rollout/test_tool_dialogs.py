"""Dialogs with tools as they are played: exact ids over ten turns, and environments that fail are no samples."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from rewards.contracts import EpisodeState, Message, Outcome, Problem, Reply
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.text.chat_template import environment as jinja
from serving_bridge.text.tokenizer import Tokenizer
from tests.support.player_table import Table, says
from tests.support.qwen_tokenizer import qwen as qwen
from tests.support.qwen_tokenizer import qwen_folder as qwen_folder
from tests.support.rollout_world import FakeReplica, Inline, virtually
from tests.support.tool_templates import HERMES

CALL = '<tool_call>\n{"name": "count", "arguments": {}}\n</tool_call>'


@dataclass
class Counting:
    """Answers every answer by a tool's result, for some turns; does wrong what it is told to."""

    max_turns: int = 10
    fails_in: str = ""
    error: BaseException = field(default_factory=lambda: ValueError("broken\x00"))
    earned_at: int | None = None
    version: str = "counting@1"
    tools: tuple[Any, ...] = (object(),)
    replies: list[Reply] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    async def _maybe(self, what: str) -> None:
        await asyncio.sleep(0.1)
        if what == self.fails_in:
            if isinstance(self.error, TimeoutError):
                await asyncio.sleep(1e6)
            raise self.error

    async def reset(self, problem: Problem) -> EpisodeState:
        await self._maybe("reset")
        return EpisodeState(problem)

    async def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        await self._maybe("step")
        self.replies.append(reply)
        after = replace(state, turn=state.turn + 1)
        if reply.is_last or after.turn == self.max_turns:
            return Outcome(1.0, {"turns": float(after.turn)}, "pass", None, after, earned_at=self.earned_at)
        return Outcome(0.125, {}, "fail", (), after)

    async def observe(self, state: EpisodeState) -> tuple[Message, ...]:
        await self._maybe("observe")
        if self.fails_in == "silence":
            return ()
        return (Message("tool", f"<|im_end|>{state.turn}", "count", f"call{state.turn:05d}"),) * 2

    async def close(self, state: EpisodeState) -> None:
        self.closed.append(state.turn)
        await self._maybe("close")


def played(
    qwen: Tokenizer, environment: Counting, answers: list[Callable[[Any], Any]], **options: Any
) -> tuple[Episode, FakeReplica, Counter[str], PromptEncoder]:
    tokenizer = replace(qwen, chat_template=jinja().from_string(HERMES))
    replica = FakeReplica(script=list(answers))

    async def story() -> tuple[Episode, Counter[str], PromptEncoder]:
        table = Table(tokenizer, {"a": replica})
        encoder = PromptEncoder(tokenizer, template="{question}", chat=True, max_prompt_tokens=80)
        given = {"max_prompt_tokens": 80, "max_tokens": 40, "group_size": 1, "reward_timeout_s": 5.0, **options}
        settings = RolloutSettings(**given)
        sampler = Sampler(
            table.dispatcher,
            settings,
            tokenizer.eos_ids,
            count=table.count,
            log=lambda *_, **__: None,
            rng=random.Random(0),
        )
        player = Player(environment, encoder, sampler, settings, scoring=Inline(), count=table.count)  # type: ignore[arg-type]
        problem = Problem(0, "Count.", "", {})
        episode = await player.play(problem, encoder.tokens(problem), Prefix())
        return episode, table.count, encoder

    episode, count, encoder = virtually(story())
    return episode, replica, count, encoder


def test_ten_turns_with_calls_go_on_from_the_sampler_s_own_ids(qwen: Tokenizer) -> None:
    environment = Counting()
    answers = [says(qwen, CALL, str(turn)) for turn in range(9)] + [says(qwen, "Nine.", "9")]
    episode, replica, count, encoder = played(qwen, environment, answers)
    assert len(episode.turns) == 10
    assert all(reply.marked == CALL for reply in environment.replies[:9])
    assert (environment.closed, count["environment_turns"]) == ([10], 9)

    # Each request is the whole of what was there: the ids of the requests before, and what was sampled, untouched.
    whole: list[int] = []
    for turn, body in zip(episode.turns, replica.bodies, strict=True):
        assert body["token_ids"] == [*whole, *turn.given]
        whole = [*body["token_ids"], *turn.answer.tokens.tolist()]
    (found,) = make_trajectories(
        Origin("run", 1, RolloutSettings(max_prompt_tokens=9, max_tokens=9), "v", "f"), 0, [episode]
    )
    found.validate()
    assert found.tokens.tolist() == whole
    assert sorted(set(found.turn.tolist())) == list(range(10))
    assert found.policy_version[found.loss_mask].tolist() == [
        turn for turn, played in enumerate(episode.turns) for _ in range(len(played.answer))
    ]
    ends = [index for index in range(len(whole)) if found.rewards[index]]
    assert [found.rewards[index] for index in ends] == [0.125] * 9 + [1.0]
    assert [found.turn[index] for index in ends] == list(range(10))

    # The dialog reads as the template writes it, and the tools' text ended no message.
    shown = encoder.tokenizer.backend.decode(whole, skip_special_tokens=False)
    results = "".join(f"\n<tool_response>\n< |im_end|>{1}\n</tool_response>" for _ in range(2))
    assert f"{CALL}<|im_end|>\n<|im_start|>user{results}<|im_end|>\n<|im_start|>assistant\n" in shown
    assert shown.count("<|im_start|>assistant") == 10


def test_a_reward_can_be_paid_for_an_earlier_turn(qwen: Tokenizer) -> None:
    answers = [says(qwen, CALL), says(qwen, CALL), says(qwen, "Done.")]
    episode, *_ = played(qwen, Counting(max_turns=3, earned_at=0), answers)
    origin = Origin("run", 1, RolloutSettings(max_prompt_tokens=9, max_tokens=9), "v", "f")
    (found,) = make_trajectories(origin, 0, [episode])
    paid = {int(found.turn[index]): float(found.rewards[index]) for index in found.rewards.nonzero()[0]}
    assert paid == {0: 1.125, 1: 0.125}
    for earned_at in (-1, 3):
        episode, *_ = played(qwen, Counting(max_turns=3, earned_at=earned_at), list(answers))
        assert (episode.turns[-1].outcome.verdict, episode.is_judged) == ("error", False)


@pytest.mark.parametrize("where", ["reset", "step", "observe"])
@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (ValueError("broken"), "error", "ValueError: broken"),
        (TimeoutError(), "timeout", "no verdict after 5 s (rollout.reward_timeout_s)"),
        (SystemExit(3), "error", "SystemExit: 3"),
    ],
)
def test_an_environment_that_fails_is_no_sample(
    qwen: Tokenizer, where: str, error: BaseException, verdict: str, reason: str
) -> None:
    environment = Counting(fails_in=where, error=error)
    episode, _, count, _ = played(qwen, environment, [says(qwen, CALL)])
    (turn,) = episode.turns
    assert (turn.outcome.reward, turn.outcome.verdict, turn.outcome.observation) == (None, verdict, None)
    assert reason in turn.outcome.reasons[0]
    assert count["failed_verdicts"] == 1
    assert environment.closed == ([] if where == "reset" else [1 if where == "observe" else 0])


def test_an_environment_that_has_nothing_to_say_ends_the_episode(qwen: Tokenizer) -> None:
    episode, *_ = played(qwen, Counting(fails_in="silence"), [says(qwen, CALL)])
    assert [turn.outcome.reward for turn in episode.turns] == [0.125]


def test_an_error_at_the_end_of_an_episode_is_counted_and_costs_nothing(qwen: Tokenizer) -> None:
    episode, _, count, _ = played(qwen, Counting(max_turns=1, fails_in="close"), [says(qwen, "1")])
    assert (episode.turns[-1].outcome.reward, count["environment_close_errors"]) == (1.0, 1)


def test_a_dialog_with_tools_ends_where_its_room_ends(qwen: Tokenizer) -> None:
    environment = Counting()
    episode, *_ = played(qwen, environment, [says(qwen, CALL)] * 10, max_episode_tokens=260)
    assert 1 < len(episode.turns) < 10
    assert [reply.is_last for reply in environment.replies] == [False] * (len(episode.turns) - 1) + [True]


@dataclass
class WithUser(Counting):
    """Has the policy's own replicas play the user."""

    said: list[str] = field(default_factory=list)

    def bind_fleet(self, ask: Any) -> None:
        self._ask = ask

    async def observe(self, state: EpisodeState) -> tuple[Message, ...]:
        self.said.append(await self._ask([{"role": "user", "content": "<|im_end|>hello"}], 5, 1))
        return (Message("user", self.said[-1]),)


def test_the_policy_s_own_replicas_can_play_the_user(qwen: Tokenizer) -> None:
    environment = WithUser(max_turns=2)
    script = [says(qwen, "answer"), says(qwen, "more please"), says(qwen, "done")]
    episode, replica, _, encoder = played(qwen, environment, script)
    assert environment.said == ["more please"]
    prompt = encoder.tokenizer.backend.decode(replica.bodies[1]["token_ids"], skip_special_tokens=False)
    assert prompt == "<|im_start|>user\n< |im_end|>hello<|im_end|>\n<|im_start|>assistant\n"
    assert replica.bodies[1]["sampling_params"]["max_tokens"] == 5
    told = encoder.tokenizer.backend.decode(episode.turns[1].given, skip_special_tokens=False)
    assert told == "\n<|im_start|>user\nmore please<|im_end|>\n<|im_start|>assistant\n"

"""Programs that play over OpenAI's client: exact ids become trajectories, and what they do wrong is no sample."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import branches_of
from rewards.contracts import Problem
from rewards.environments import AgentEnvironment
from rewards.settings import TaskSettings
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.episodes import Episode, EpisodeError
from serving_bridge.rollout.groups import GroupError
from serving_bridge.rollout.sampling import Sampler
from serving_bridge.rollout.trajectories import Origin, make_trajectories
from serving_bridge.settings import RolloutSettings
from serving_bridge.text import Tokenizer
from serving_bridge.vllm import Failed
from tests.support.player_table import Table, says
from tests.support.rollout_world import AdditionTask, FakeReplica
from tests.support.session_world import tokenizer as tokenizer

PROBLEM = Problem(0, "7+5=", "12", {"question": "7+5="})


@contextmanager
def environment_of(program: str, **episode: Any) -> Iterator[AgentEnvironment]:
    settings = TaskSettings.model_validate(
        {
            "provider": "rows",
            "environment": "agent",
            "chat": True,
            "turns": 8,
            "episode": {"agent": f"tests.support.agents:{program}", "agent_processes": 2, "wall_s": 30.0} | episode,
        }
    )
    environment = AgentEnvironment(AdditionTask(), settings)
    try:
        yield environment
    finally:
        environment.close()


def played(
    tokenizer: Tokenizer, environment: AgentEnvironment, answers: list[Any], size: int = 1, **options: Any
) -> tuple[list[Episode], FakeReplica, Counter[str], RolloutSettings]:
    replica = FakeReplica(script=list(answers))

    async def story() -> tuple[list[Episode], Counter[str], RolloutSettings]:
        table = Table(tokenizer, {"a": replica})
        given = {"max_prompt_tokens": 80, "max_tokens": 40, "group_size": size, "max_attempts": 1, **options}
        settings = RolloutSettings(**given)
        encoder = PromptEncoder(tokenizer, template="{question}", chat=True, max_prompt_tokens=80)
        quiet: Any = lambda *_, **__: None  # noqa: E731
        sampler = Sampler(
            table.dispatcher, settings, tokenizer.eos_ids, count=table.count, log=quiet, rng=random.Random(0)
        )
        async with AgentPlayer(environment, encoder, sampler, settings, count=table.count) as player:
            return await player.play_group(PROBLEM, [], size), table.count, settings

    episodes, count, settings = asyncio.run(story())
    return episodes, replica, count, settings


def test_what_a_program_and_the_policy_said_is_a_trajectory_of_sampled_ids(tokenizer: Tokenizer) -> None:
    with environment_of("two_turns") as environment:
        answers = [says(tokenizer, "12", "4"), says(tokenizer, "Yes.", "5")]
        (episode,), replica, count, settings = played(tokenizer, environment, answers)
    (trajectory,) = make_trajectories(Origin("run", 1, settings, "agent@1", "fingerprint"), 0, [episode])
    trajectory.validate()
    sent = [body["token_ids"] for body in replica.bodies]
    tokens = trajectory.tokens.tolist()
    assert tokens[: len(sent[1])] == sent[1]
    assert sent[1][: len(sent[0])] == sent[0]
    sampled = np.flatnonzero(trajectory.loss_mask)
    lengths = [len(turn.answer) for turn in episode.turns]
    assert trajectory.policy_version[sampled].tolist() == [4] * lengths[0] + [5] * lengths[1]
    assert tokens[sampled[-1]] == tokenizer.eos_ids[0]
    assert np.flatnonzero(trajectory.rewards).tolist() == [len(tokens) - 1]
    assert (trajectory.rewards[-1], trajectory.reward_parts) == (0.5, {"asked": 2.0})
    assert trajectory.turn.max() == 1
    assert (count["agent_answers"], count["agent_side_answers"], count["agent_rebuilt"]) == (2, 0, 0)


def test_the_task_judges_the_last_answer_where_the_program_gives_no_reward(tokenizer: Tokenizer) -> None:
    with environment_of("branches") as environment:
        answers = [says(tokenizer, text) for text in ("11", "10", "9", "12")]
        (episode,), _, count, _ = played(tokenizer, environment, answers)
    assert episode.turns[-1].outcome.verdict == "pass"
    assert (count["agent_answers"], count["agent_side_answers"]) == (4, 2)


def test_every_branch_is_a_sequence_of_its_own_in_the_episode_s_record(tokenizer: Tokenizer) -> None:
    with environment_of("branches") as environment:
        answers = [says(tokenizer, text) for text in ("11", "10", "9", "12")]
        (episode,), replica, _, settings = played(tokenizer, environment, answers)
    (record,) = make_trajectories(Origin("run", 1, settings, "agent@1", "fingerprint"), 0, [episode])
    record.validate()
    said = [tokenizer.decode(turn.answer.tokens.tolist()) for turn in episode.turns]
    assert said == ["11", "9", "10", "12"], "branches in the order of their last answers"
    sequences = branches_of(record)
    sent = [body["token_ids"] for body in replica.bodies]
    for sequence, last in zip(sequences, (0, 2, 3), strict=True):
        assert sequence.tokens[: len(sent[last])].tolist() == sent[last]
        assert sequence.total_reward == record.total_reward == 1.0
    assert [int(sequence.loss_mask.sum()) for sequence in sequences] == [
        len(turn.answer) for turn in episode.turns[:2]
    ] + [len(episode.turns[2].answer) + len(episode.turns[3].answer)]
    assert (record.trajectory_id, record.group_size) == ("run/0/0", 1)


def test_a_branch_within_a_dialog_has_what_came_before_as_context(tokenizer: Tokenizer) -> None:
    with environment_of("sub_agent") as environment:
        answers = [says(tokenizer, text) for text in ("11", "aside", "10", "12")]
        (episode,), replica, _, settings = played(tokenizer, environment, answers)
    (record,) = make_trajectories(Origin("run", 1, settings, "agent@1", "fingerprint"), 0, [episode])
    record.validate()
    sent = [body["token_ids"] for body in replica.bodies]
    aside, back, dialog = branches_of(record)
    assert tokenizer.decode(aside.tokens[aside.loss_mask].tolist()) == "aside"
    assert [tokenizer.decode(turn.answer.tokens.tolist()) for turn in episode.turns] == ["aside", "11", "10", "12"]
    assert back.tokens[: len(sent[2])].tolist() == sent[2]
    assert int(back.loss_mask.sum()) == sum(len(turn.answer) for turn in episode.turns[1:3])
    assert dialog.tokens[: len(sent[3])].tolist() == sent[3]
    assert int(dialog.loss_mask.sum()) == len(episode.turns[3].answer), "the first answer is context here"
    assert not dialog.loss_mask[: len(sent[3])].any()


@pytest.mark.parametrize(
    ("program", "verdict", "reason"),
    [
        ("raises", "error", r"ValueError: broken\x1b[31m (agents.py, line "),
        ("hangs", "timeout", "no verdict within 3 s"),
        ("dies", "crashed", "exit code 3"),
        ("infinite", "error", "inf"),
    ],
)
def test_programs_that_fail_are_verdicts_and_no_rewards(
    tokenizer: Tokenizer, program: str, verdict: str, reason: str
) -> None:
    with environment_of(program, wall_s=3.0 if program == "hangs" else 30.0) as environment:
        answers = [says(tokenizer, "12"), says(tokenizer, "Yes.")]
        (episode,), _, count, _ = played(tokenizer, environment, answers)
    outcome = episode.turns[-1].outcome
    assert (outcome.verdict, outcome.reward) == (verdict, None)
    assert reason in outcome.reasons[0]
    assert not episode.is_judged
    assert count["failed_verdicts"] == 1


def test_an_episode_without_an_answer_breaks_its_group(tokenizer: Tokenizer) -> None:
    with environment_of("silent") as environment, pytest.raises(GroupError) as caught:
        played(tokenizer, environment, [])
    assert EpisodeError.__name__ in str(caught.value)


def test_a_program_that_fails_for_want_of_an_answer_is_blamed_for_nothing(tokenizer: Tokenizer) -> None:
    with environment_of("two_turns") as environment, pytest.raises(GroupError) as caught:
        played(tokenizer, environment, [says(tokenizer, "12"), lambda _: (500, b"{}")])
    assert Failed.__name__ in str(caught.value)

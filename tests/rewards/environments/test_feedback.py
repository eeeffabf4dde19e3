"""The dialog that comes with Weir: feedback on wrong answers, and less pay for every turn."""

from __future__ import annotations

from rewards.contracts.environment import Reply
from rewards.environments import create_environment
from rewards.settings.task import TaskSettings
from tests.support.rollout_world import AdditionTask


def test_feedback_pays_only_for_the_last_answer_and_less_for_every_turn() -> None:
    task = AdditionTask()
    settings = TaskSettings(provider="jsonl_math", turns=3, turn_discount=0.5, feedback="No: {reasons}")
    environment = create_environment(task, settings)
    problem = task.problem("train", 0)
    wrong = environment.step(environment.reset(problem), Reply("0", "stop", is_last=False))
    assert (wrong.reward, wrong.observation) == (0.0, f"No: expected '{problem.answer}'")
    right = environment.step(wrong.state, Reply(problem.answer, "stop", is_last=False))
    assert (right.reward, right.observation, right.verdict) == (0.5, None, "pass")
    assert environment.step(wrong.state, Reply(problem.answer, "stop", is_last=False)) == right
    last = environment.step(right.state, Reply("0", "stop", is_last=False))
    assert (last.reward, last.observation, last.parts["turns"]) == (0.0, None, 3.0)
    assert environment.step(environment.reset(problem), Reply("0", "stop", is_last=True)).observation is None
    assert environment.step(environment.reset(problem), Reply("0", "length", is_last=False)).observation is None
    assert environment.version == "addition@1+feedback3"
    assert create_environment(task, settings.model_copy(update={"turns": 1})).version == "addition@1"


def test_a_feedback_that_names_no_reasons_gives_nothing_away() -> None:
    task = AdditionTask()
    environment = create_environment(task, TaskSettings(provider="jsonl_math", turns=2))
    observation = environment.step(
        environment.reset(task.problem("train", 0)), Reply("0", "stop", is_last=False)
    ).observation
    assert observation is not None
    assert task.problem("train", 0).answer not in observation

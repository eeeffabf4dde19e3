"""A user's class as an environment: short to write, played in processes, and its errors are verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from learner_jax.runtime import DoorError
from rewards.contracts import Environment, EpisodeState, Outcome, Problem, Reply, RewardRequest, TaskError
from rewards.environments import FeedbackEnvironment, create_environment
from rewards.environments.own_environment import OwnEnvironment
from rewards.sandbox import confinement
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from tests.support.user_folder import working_in

confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")
MODULE = '''
import time

class Guess:
    """Guess the number in five: a tenth for every answer in the right direction, 1 for the number."""
    def reset(self, row):
        return {"number": int(row["answer"]), "said": ()}

    def step(self, state, answer):
        state = {**state, "said": (*state["said"], answer)}
        if int(answer) == state["number"]:
            return {"score": 1, "tries": len(state["said"])}, None, state
        return 0.1, f"no, not {' or '.join(state['said'])}", state

class Odd:
    calls = 0
    def reset(self, row):
        self.calls += 1
        return self.calls
    async def step(self, state, answer):
        match answer:
            case "raise": raise ValueError("odd")
            case "hang": time.sleep(60)
            case "two": return 1, None
            case "number": return 1, 2, state
            case "blank": return 1, "", state
            case "state": return 1, None, object()
            case "nan": return float("nan"), None, None
            case "open": return 1, open("/etc/passwd").read(), None
        return state, "more", state + 10

class Shop:
    tools = ("price", {"name": "buy", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}})

    def reset(self, row):
        return {"bought": 0}

    def price(self, state, item: str) -> str:
        match item:
            case "raise": raise KeyError("sold out")
            case "hang": time.sleep(60)
            case "object": return object()
        return f"{item} costs 3"

    def buy(self, state, n):
        return f"{n} bought", {"bought": state["bought"] + n}, 0.25

    def step(self, state, answer):
        return state["bought"], None, state

class NoTool:
    tools = ("sell",)
    def reset(self, row): pass
    def step(self, state, answer): pass

class BadSchema(NoTool):
    tools = ({"name": "reset", "parameters": {"type": "object", "properties": 3}},)

class NoList(NoTool):
    tools = "reset"

class NoStep:
    def reset(self, row): pass

class Short:
    def reset(self): pass
    def step(self, state, answer): pass

class Broken:
    def __init__(self): raise OSError("no server")

class Needs:
    def __init__(self, task): pass

class Whole:
    version, max_turns = "whole@1", 3
    def __init__(self, task, settings): self.task = task
    def reset(self, problem): pass
    def step(self, state, reply): pass

def made(task, settings):
    return Whole(task, settings)

def nothing(task, settings):
    return object()

def raises(task, settings):
    raise OSError("no server")

def judge(prompt, answer, row):
    return 0.5
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "my_env.py").write_text(MODULE)
    rows = [{"question": f"Number {number}", "answer": number} for number in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[Environment, Problem]]]:
    made: list[Any] = []

    def environment(name: str, **settings: Any) -> tuple[Environment, Problem]:
        fields = {"provider": "rows", "data": "prompts.jsonl", "reward": "math", "turns": 3, "score_processes": 1}
        given = TaskSettings.model_validate({**fields, "environment": name, **settings})
        task = create_task(given, seed=0)
        made.append(task)
        built = create_environment(task, given)
        made.append(built)
        return built, task.problem("train", 0)

    yield environment
    for one in made:
        if hasattr(one, "close"):
            one.close()


def reply(text: str, finish_reason: str = "stop", *, is_last: bool = False) -> Reply:
    return Reply(text, finish_reason, is_last)


def played(environment: Environment, problem: Problem, *answers: str) -> list[Outcome]:
    outcomes: list[Outcome] = []
    state: EpisodeState = environment.reset(problem)
    for answer in answers:
        outcomes.append(environment.step(state, reply(answer)))
        state = outcomes[-1].state
    return outcomes


@confined
def test_a_class_is_played_over_several_answers(make: Callable[..., tuple[Environment, Problem]]) -> None:
    environment, problem = make("my_env:Guess")
    first, second, third = played(environment, problem, "100", "101", problem.answer)
    assert [(step.reward, step.verdict, step.observation) for step in (first, second, third)] == [
        (0.1, "fail", "no, not 100"),
        (0.1, "fail", "no, not 100 or 101"),
        (1.0, "pass", None),
    ]
    assert third.parts == {"tries": 3.0}
    assert (environment.max_turns, third.state.turn) == (3, 3)


@confined
def test_an_episode_can_be_played_again_from_any_state(make: Callable[..., tuple[Environment, Problem]]) -> None:
    environment, problem = make("my_env:Odd", turns=9)
    (first,) = played(environment, problem, "x")
    again = [environment.step(first.state, reply("x")) for _ in range(2)]
    assert [(step.reward, step.state.turn) for step in again] == [(11.0, 2), (11.0, 2)]


@confined
def test_an_episode_ends_with_the_last_turn_and_with_a_cut_answer(
    make: Callable[..., tuple[Environment, Problem]],
) -> None:
    environment, problem = make("my_env:Odd", turns=2)
    assert [step.observation for step in played(environment, problem, "x", "x")] == ["more", None]
    start = environment.reset(problem)
    assert environment.step(start, reply("x", "length")).observation is None
    assert environment.step(start, reply("x", is_last=True)).observation is None


@confined
@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        ("raise", "error", "ValueError: odd (my_env.py, line"),
        ("hang", "timeout", "no verdict within 1 s"),
        ("two", "error", "step gave (1, None), expected (reward, observation or None, state)"),
        ("number", "error", "an observation is 2, expected text"),
        ("blank", "error", "an observation is '', expected text"),
        ("state", "error", "the state can't be handed on: object is not plain data"),
        ("nan", "error", "a reward is nan, expected a finite number"),
        ("open", "error", "set task.score_confined to false"),
    ],
)
def test_what_goes_wrong_in_a_class_is_a_failed_verdict(
    make: Callable[..., tuple[Environment, Problem]], answer: str, verdict: str, said: str
) -> None:
    environment, problem = make("my_env:Odd", score_timeout_s=1)
    before, after = played(environment, problem, "x", answer)
    assert before.reward == 1.0
    assert (after.reward, after.verdict, after.observation) == (None, verdict, None)
    assert said in after.reasons[0]
    assert "task.environment 'my_env:Odd'" in after.reasons[0]


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@confined
def test_methods_of_a_class_are_tools_whose_errors_are_told(make: Callable[..., tuple[Environment, Problem]]) -> None:
    environment, problem = make("my_env:Shop", score_timeout_s=1, turns=4, episode={"call_cost": 0.5})
    assert [tool.name for tool in environment.tools] == ["price", "buy"]  # type: ignore[attr-defined]
    answers = [
        call("price", item="tea") + call("buy", n=2) + call("buy", n=3),
        "".join(call("price", item=item) for item in ("raise", "hang", "object")) + call("price") + "<tool_call>",
        "done",
    ]
    first, second, third = played(environment, problem, *answers)
    assert isinstance(first.observation, tuple)
    assert [message.content for message in first.observation] == ["tea costs 3", "2 bought", "3 bought"]
    assert [message.call_id for message in first.observation] == ["call00000", "call00001", "call00002"]
    assert (first.reward, first.verdict) == (0.5, "fail")
    assert isinstance(second.observation, tuple)
    said = [message.content for message in second.observation]
    for text, expected in zip(
        said,
        ("KeyError: 'sold out'", "no verdict within 1 s", "a tool gave <object", "is a required", "can't be read"),
        strict=True,
    ):
        assert text.startswith("Error: ")
        assert expected in text
    assert second.reward == -2.5
    assert (third.reward, third.observation) == (5.0, None)


@confined
def test_calls_in_the_last_answer_are_not_run(make: Callable[..., tuple[Environment, Problem]]) -> None:
    environment, problem = make("my_env:Shop", turns=2)
    (outcome,) = [environment.step(environment.reset(problem), reply(call("buy", n=2), is_last=True))]
    assert (outcome.reward, outcome.observation) == (0.0, None)


@confined
def test_without_a_reward_the_first_answer_is_judged_by_the_environment(folder: Path) -> None:
    settings = TaskSettings(provider="rows", data="prompts.jsonl", environment="my_env:Guess", turns=3)
    task = create_task(settings, seed=0)
    problem = task.problem("heldout", 0)
    right, wrong = (task.score(RewardRequest(problem, text, "stop")) for text in (problem.answer, "100"))
    assert (right.score, right.parts, wrong.score) == (1.0, {"tries": 1.0}, 0.1)
    assert task.version.split("@")[1].startswith("my_env:Guess:")
    before = create_environment(task, settings).version
    (folder / "my_env.py").write_text(MODULE + "\n")
    assert create_environment(task, settings).version != before
    assert create_environment(task, replace_turns(settings, 2)).version.endswith(":2")
    task.close()


def replace_turns(settings: TaskSettings, turns: int) -> TaskSettings:
    return settings.model_copy(update={"turns": turns})


def test_a_function_or_a_whole_class_gives_an_environment_of_its_own(
    make: Callable[..., tuple[Environment, Problem]],
) -> None:
    for name in ("my_env:made", "my_env:Whole"):
        environment, _ = make(name)
        assert (environment.version, environment.max_turns) == ("whole@1", 3)
    assert isinstance(make("feedback")[0], FeedbackEnvironment)
    assert not isinstance(make("feedback")[0], OwnEnvironment)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_env:NoStep", "has no method step(state, answer)"),
        ("my_env:NoTool", "names 'sell', expected a method sell(state, ...)"),
        ("my_env:BadSchema", "are no JSON schema"),
        ("my_env:NoList", "is a str, expected a list of names"),
        ("my_env:Short", "reset takes (), expected (row)"),
        ("my_env:Broken", "can't be made: OSError: no server (my_env.py, line"),
        ("my_env:Needs", "takes (task), expected ()"),
        ("my_env:Gues", "has no 'Gues'; did you mean Guess?"),
        ("my_env:nothing", "made a object without version, max_turns, reset, step"),
        ("my_env:raises", "made no environment: OSError: no server (my_env.py, line"),
        ("my_env:judge", "takes (prompt, answer, row), expected (task, settings)"),
        ("feedbak", "task.environment 'feedbak' is unknown; did you mean feedback?"),
    ],
)
def test_what_is_no_environment_says_what_was_expected(
    make: Callable[..., tuple[Environment, Problem]], name: str, said: str
) -> None:
    with pytest.raises((DoorError, TaskError)) as caught:
        make(name)
    assert said in str(caught.value)

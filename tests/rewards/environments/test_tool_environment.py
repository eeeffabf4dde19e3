"""A task with tools, from the settings to rewards: calls are told, the final answer is judged, nothing crashes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from learner_jax.runtime import DoorError
from rewards.contracts import EpisodeState, Outcome, Problem, Reply, TaskError, failed
from rewards.environments import create_environment, declared_tools
from rewards.sandbox import confinement
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from tests.support.user_folder import working_in

confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")
MODULE = '''
import time

PRICES = {"tea": 3, "cake": 5}

def price(item: str, row: dict) -> str:
    """Price of an item."""
    match item:
        case "raise": raise KeyError(item)
        case "hang": time.sleep(60)
        case "nothing": return None
        case "open": return open("/etc/passwd").read()
    return f"{PRICES[item]} for {row['who']}"

def untyped(item: object): pass

number = 3
'''


def settings(folder: Path, **changes: Any) -> TaskSettings:
    (folder / "docs.jsonl").write_text('{"id": "paris", "text": "Paris is the capital of France."}\n')
    rows = [{"question": f"Q{i}", "answer": "Paris", "who": "Ann", "known": i % 2 == 0} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_tools.py").write_text(MODULE)
    episode = {"tools": ["calculator", "search"], "corpora": {"docs": "docs.jsonl"}, **changes.pop("episode", {})}
    fields = {"provider": "rows", "data": "rows.jsonl", "reward": "exact", "turns": 4, "chat": True}
    return TaskSettings.model_validate(
        {**fields, "environment": "tools", "score_processes": 1, "episode": episode, **changes}
    )


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


PROBLEM = Problem(1, "Q", "Paris", {"answer": "Paris", "who": "Ann", "known": True})


def play(chosen: TaskSettings, *answers: str | Reply, problem: Problem = PROBLEM, **options: Any) -> list[Outcome]:
    task = create_task(chosen, seed=0)
    environment: Any = create_environment(task, chosen)
    for name, value in options.items():
        setattr(environment, name, value)

    async def played() -> list[Outcome]:
        state: EpisodeState = await environment.reset(problem)
        outcomes = []
        for answer in answers:
            reply = answer if isinstance(answer, Reply) else Reply(answer, "stop", is_last=False)
            outcomes.append(await environment.step(state, reply))
            state = outcomes[-1].state
        await environment.close(state)
        return outcomes

    try:
        return asyncio.run(played())
    finally:
        environment.end()
        task.close()


def texts(outcome: Outcome) -> list[str]:
    assert isinstance(outcome.observation, tuple)
    return [message.content for message in outcome.observation]


def test_calls_are_told_and_the_final_answer_is_judged(tmp_path: Path) -> None:
    with working_in(tmp_path):
        chosen = settings(tmp_path, episode={"citation_weight": 0.5})
        both = "Let me see. " + call("calculator", expression="2*3") + call("search", query="capital of France")
        first, second = play(chosen, both, "Paris [paris]")
    assert texts(first) == ["6", "[paris] Paris is the capital of France."]
    assert (first.reward, first.state.turn) == (0.0, 1)
    assert (second.reward, second.verdict, second.observation) == (1.0, "pass", None)
    assert second.parts == {"abstained": 0.0, "citations": 1.0, "calls": 2.0, "failed_calls": 0.0, "turns": 2.0}


def test_wrong_calls_are_told_and_cost(tmp_path: Path) -> None:
    with working_in(tmp_path):
        chosen = settings(tmp_path, episode={"call_cost": 0.1})
        wrong = "<tool_call>nonsense</tool_call>" + call("sub") + call("calculator", expression="1/0")
        first, last = play(chosen, wrong, "Rome")
    assert [text[:7] for text in texts(first)] == ["Error: "] * 3
    assert first.reward == pytest.approx(-0.3)
    assert (last.reward, last.verdict, last.parts["failed_calls"]) == (0.0, "fail", 3.0)


def test_calls_in_the_last_answer_are_not_run(tmp_path: Path) -> None:
    with working_in(tmp_path):
        text = "Paris" + call("calculator", expression="2")
        for last in (Reply(text, "stop", is_last=True), Reply(text, "length", is_last=False)):
            (outcome,) = play(settings(tmp_path), last)
            assert (outcome.reward, outcome.observation) == (1.0, None)
        looped = play(settings(tmp_path), *[call("calculator", expression="2")] * 4)
    assert [outcome.observation is None for outcome in looped] == [False, False, False, True]
    assert looped[-1].reward == 0.0


def test_abstaining_pays_where_the_documents_hold_no_answer(tmp_path: Path) -> None:
    unknown = Problem(2, "Q", "", {"known": False})
    with working_in(tmp_path):
        chosen = settings(tmp_path, episode={"answerable_column": "known"})
        (knows_not,) = play(chosen, "I don't know.", problem=unknown)
        (invents,) = play(chosen, "Paris", problem=unknown)
        (lazy,) = play(chosen, "I don't know.")
    assert [outcome.reward for outcome in (knows_not, invents, lazy)] == [1.0, 0.0, 0.0]


@confined
def test_a_function_of_one_s_own_is_a_tool_that_can_be_killed(tmp_path: Path) -> None:
    with working_in(tmp_path):
        chosen = settings(tmp_path, episode={"tools": ["my_tools:price"], "tool_timeout_s": 1})
        items = ("tea", "raise", "hang", "nothing", "open", "beer")
        assert declared_tools(chosen)[0].as_chat()["function"] == {
            "name": "price",
            "description": "Price of an item.",
            "parameters": {
                "type": "object",
                "properties": {"item": {"type": "string"}},
                "required": ["item"],
                "additionalProperties": False,
            },
        }
        (outcome,) = play(chosen, "".join(call("price", item=item) for item in items))
    tea, raised, late, nothing, opened, unknown = texts(outcome)
    assert tea == "3 for Ann"
    assert "KeyError: 'raise'" in raised
    assert "within 1 s" in late
    assert "a tool gave None" in nothing
    assert "task.score_confined" in opened
    assert "KeyError: 'beer'" in unknown


def test_a_verifier_that_fails_and_time_that_is_over_are_no_samples(tmp_path: Path) -> None:
    class Broken:
        version = "broken"

        def score(self, request: Any) -> Any:
            return failed("the verifier died", "crashed")

    with working_in(tmp_path):
        (outcome,) = play(settings(tmp_path), "Paris", _task=Broken())
        assert (outcome.reward, outcome.verdict) == (None, "crashed")
        clock = iter([0.0, 601.0])
        with pytest.raises(TimeoutError, match="task.episode.wall_s"):
            play(settings(tmp_path), "Paris", _clock=lambda: next(clock))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"turns": 1}, "needs turns of 2 or more"),
        ({"chat": False}, "chat = true"),
        ({"episode": {"tools": []}}, "set episode.tools"),
        ({"episode": {"corpora": {}}}, "there are no documents"),
        ({"episode": {"tools": ["calculator", "calculator"]}}, "names 'calculator' twice"),
        ({"environment": "user_simulator"}, "needs episode.user_url"),
    ],
)
def test_settings_that_can_not_work_say_so(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("calculater", "task.episode.tools 'calculater' is unknown; did you mean calculator?"),
        ("my_tools:untyped", "has a type that JSON schema can't say"),
        ("my_tools:number", "is a int, expected a function"),
        ("my_tools:none", "has no 'none'"),
    ],
)
def test_what_is_no_tool_says_why(tmp_path: Path, tool: str, said: str) -> None:
    with working_in(tmp_path), pytest.raises((DoorError, TaskError)) as caught:
        declared_tools(settings(tmp_path, episode={"tools": [tool]}))
    assert said in str(caught.value)

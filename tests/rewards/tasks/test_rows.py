"""A user's own rows and reward: scored in processes, read strictly, and never the end of a run."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from learner_jax.runtime import DoorError
from rewards.contracts import RewardRequest, RewardResult, Task, TaskError
from rewards.sandbox import confinement
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from rewards.tasks.problems import split_of
from tests.support.user_folder import working_in

confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")
MODULE = """
import asyncio, os, time, urllib.request
from pathlib import Path
WORDS = Path("words.txt").read_text().split()
calls = 0

def exact(prompt, answer, row):
    return answer.strip() == row["answer"]

def parts(prompt, answer, row):
    return {"right": answer == row["answer"], "short": 0.25}

def named(prompt, answer, row):
    return {"score": 0.5, "length": len(answer)}

async def later(prompt, answer, row):
    await asyncio.sleep(0.01)
    return len(WORDS)

def given(prompt, answer, row):
    if answer == "raise":
        raise KeyError("no such thing")
    if answer == "exit":
        raise SystemExit(3)
    if answer == "die":
        os._exit(3)
    if answer == "hang":
        time.sleep(60)
    if answer == "count":
        global calls
        calls += 1
        return calls
    return {"none": None, "text": "1", "nan": float("nan"), "infinite": float("inf"), "huge": 1e300, "empty": {},
            "of text": {"a": "1"}, "list": [1]}[answer]

def outside(prompt, answer, row):
    try:
        return len(urllib.request.urlopen(answer, timeout=5).read())
    except OSError as error:
        raise RuntimeError("the judge does not answer") from error

def reads(prompt, answer, row):
    return len(Path("words.txt").read_text().split())

def starts(prompt, answer, row):
    os.system(f"(sleep 2; touch late) & echo $$")
    time.sleep(60)

def secret(prompt, answer, row):
    return "WEIR_TEST_SECRET" in os.environ

def many():
    for number in range(40):
        yield {"question": f"What is {number}?", "answer": number, "tags": ("a", "b")}

def many_of(size, start=0):
    return [{"q": f"{number}", "a": str(number)} for number in range(start, start + size)]

def wrong_rows():
    return [{"question": "a", "answer": "b"}, ["question"]]

def odd_rows():
    return [{"question": "a", "answer": "b", "thing": object()}]

def broken_rows():
    yield {"question": "a", "answer": "b"}
    raise OSError("the server is gone")
"""


def line_of(text: str) -> int:
    return MODULE[: MODULE.index(text)].count("\n") + 1


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """The working folder of a user, with a module and data."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "words.txt").write_text("one two three")
    rows = [{"question": f"What is {number}?", "answer": str(number), "level": number % 3} for number in range(200)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture
def make() -> Iterator[Callable[..., Task]]:
    made: list[Task] = []

    def rows(reward: str = "my_rewards:exact", data: str = "prompts.jsonl", **settings: Any) -> Task:
        fields = {"provider": "rows", "data": data, "reward": reward, "score_processes": 1, **settings}
        made.append(create_task(TaskSettings.model_validate(fields), seed=0))
        return made[-1]

    yield rows
    for task in made:
        task.close()


def score(task: Task, answer: str) -> RewardResult:
    return task.score(RewardRequest(task.problem("train", 0), answer, "stop"))


# What a function may give


@confined
def test_a_function_says_whether_an_answer_is_right(make: Callable[..., Task]) -> None:
    task = make()
    reference = task.problem("train", 0).answer
    right, wrong = score(task, f" {reference}"), score(task, "no")
    assert (right.score, right.verdict) == (1.0, "pass")
    assert (wrong.score, wrong.verdict, wrong.reasons) == (0.0, "fail", (f"expected {reference!r}",))


@confined
def test_named_numbers_are_parts_of_a_sum_or_stand_beside_a_score(make: Callable[..., Task]) -> None:
    summed, named = score(make("my_rewards:parts"), "no"), score(make("my_rewards:named"), "four")
    assert (summed.score, summed.parts) == (0.25, {"right": 0.0, "short": 0.25})
    assert (named.score, named.parts) == (0.5, {"length": 4.0})


@confined
def test_an_async_function_is_waited_for_inside_its_walls(make: Callable[..., Task]) -> None:
    assert score(make("my_rewards:later"), "").score == 3.0


@confined
@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        ("raise", "error", f"KeyError: 'no such thing' (my_rewards.py, line {line_of('raise KeyError')})"),
        ("exit", "error", "SystemExit: 3"),
        ("die", "crashed", "exit code 3"),
        ("hang", "timeout", "no verdict within 1 s"),
        ("none", "error", "TypeError: a reward is None, expected a number, True or False, or a dict of named numbers"),
        ("text", "error", "a reward is '1', expected a number"),
        ("nan", "error", "a reward is nan, expected a finite number"),
        ("infinite", "error", "a reward is inf, expected a finite number"),
        ("huge", "error", "a reward is 1e+300, expected a finite number from"),
        ("empty", "error", "an empty dict"),
        ("of text", "error", "the part 'a' of a reward is '1'"),
        ("list", "error", "a reward is [1]"),
    ],
)
def test_a_function_that_fails_gives_no_score_and_the_next_answer_is_scored(
    make: Callable[..., Task], answer: str, verdict: str, reason: str
) -> None:
    task = make("my_rewards:given", score_timeout_s=1)
    result = score(task, answer)
    assert (result.score, result.verdict) == (None, verdict)
    assert reason in result.reasons[0]
    assert "my_rewards:given" in result.reasons[0]
    assert [score(task, "count").score for _ in range(2)] == [1.0, 1.0], "answers leave nothing behind"


# Walls


@confined
def test_a_confined_function_has_no_network_and_says_what_to_set(make: Callable[..., Task]) -> None:
    reason = score(make("my_rewards:outside"), "http://127.0.0.1:1/").reasons[0]
    assert "RuntimeError: the judge does not answer" in reason
    assert "set task.score_confined to false" in reason
    assert "read files where the module is imported" in score(make("my_rewards:reads"), "").reasons[0]


def test_a_free_function_has_network_files_and_the_environment(
    make: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIR_TEST_SECRET", "x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        task = make("my_rewards:outside", score_confined=False)
        host, port = server.getsockname()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(score, task, f"http://{host}:{port}/")
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nright")
            assert asked.result(30).score == 5.0
    assert score(make("my_rewards:reads", score_confined=False), "").score == 3.0
    assert score(make("my_rewards:secret", score_confined=False), "").score == 1.0


@confined
def test_a_confined_function_sees_nothing_of_the_environment(
    make: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIR_TEST_SECRET", "x")
    assert score(make("my_rewards:secret"), "").score == 0.0


def test_programs_that_a_free_function_started_end_at_its_deadline(make: Callable[..., Task], folder: Path) -> None:
    assert score(make("my_rewards:starts", score_confined=False, score_timeout_s=1), "").verdict == "timeout"
    time.sleep(2)
    assert not (folder / "late").exists()


# Data


@confined
def test_rows_of_a_function_are_problems_with_all_their_columns(make: Callable[..., Task]) -> None:
    task = make(data="my_rewards:many")
    problem = task.problem("train", 0)
    assert problem.question == f"What is {problem.answer}?"
    assert problem.metadata["tags"] == ("a", "b")
    assert task.target(problem) == problem.answer
    assert score(task, problem.answer).score == 0.0, "the row has the number, not its text"


@confined
def test_options_are_arguments_of_the_function_and_columns_are_chosen(make: Callable[..., Task]) -> None:
    columns = {"question_column": "q", "answer_column": "a"}
    task = make(data="my_rewards:many_of", options={"size": 30, "start": 100}, **columns)
    problem = task.problem("train", 0)
    assert problem.metadata == {"q": problem.answer, "a": problem.answer, "question": problem.question,
                                "answer": problem.answer}  # fmt: skip
    assert score(task, problem.answer).score == 1.0
    with pytest.raises(DoorError, match="missing a required argument: 'size'"):
        make(data="my_rewards:many_of", **columns)


@confined
def test_the_functions_of_other_splits_have_arguments_too(make: Callable[..., Task], folder: Path) -> None:
    columns: dict[str, Any] = {"question_column": "q", "answer_column": "a"}
    small, large = {"size": 3, "start": 500}, {"size": 30, "start": 100}
    of_function = {"data": "my_rewards:many_of", "heldout_data": "my_rewards:many_of", **columns}
    task = make(options=large, heldout_options=small, **of_function)
    assert {task.problem("heldout", i).answer for i in range(3)} == {"500", "501", "502"}
    assert task.num_distinct("heldout") == 3
    shared = make(options=large, **of_function)  # without some of its own it has those of the task
    assert {shared.problem("heldout", i).answer for i in range(30)} == {str(n) for n in range(100, 130)}
    (folder / "rows.jsonl").write_text('{"q": "1", "a": "1"}\n{"q": "2", "a": "2"}\n')
    beside = make(data="rows.jsonl", validation_data="my_rewards:many_of", validation_options=small, **columns)
    assert {beside.problem("validation", i).answer for i in range(3)} == {"500", "501", "502"}
    with pytest.raises(DoorError, match="task.validation_data .*missing a required argument: 'size'"):
        make(data="rows.jsonl", validation_data="my_rewards:many_of", **columns)
    with pytest.raises(TaskError, match="task.heldout_options size, start: a file takes none"):
        make(data="my_rewards:many_of", options=large, heldout_data="rows.jsonl", heldout_options=small, **columns)
    with pytest.raises(ValidationError, match="heldout_options are arguments of a function, and heldout_data names"):
        make(data="my_rewards:many_of", options=large, heldout_options=small, **columns)


@confined
def test_what_is_held_out_is_never_trained_on(make: Callable[..., Task], folder: Path) -> None:
    path = folder / "prompts.jsonl"
    path.write_text(path.read_text() * 2)
    task = make(holdout_percent=20)
    train = {task.problem("train", index).question for index in range(500)}
    heldout = {task.problem("heldout", index).question for index in range(task.num_distinct("heldout") or 0)}
    assert len(heldout) > 20
    assert not train & heldout
    assert all(split_of(question, 20) == "heldout" for question in heldout)
    assert task.num_distinct("train") == len(train)


@confined
def test_the_version_changes_with_the_rows_and_with_the_function(make: Callable[..., Task], folder: Path) -> None:
    first = make().version
    assert first.startswith("rows/prompts.jsonl:")
    assert "@my_rewards:exact:" in first
    assert make().version == first
    (folder / "my_rewards.py").write_text(MODULE + "\n")
    second = make().version
    with (folder / "prompts.jsonl").open("a") as file:
        file.write('{"question": "new", "answer": "new"}\n')
    assert len({first, second, make().version}) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": ""}, 'task.data is empty; a task of rows needs a file, such as "prompts.jsonl"'),
        ({"reward": ""}, 'task.reward is empty; a task of rows needs a function, such as "my_rewards:exact"'),
        ({"data": "none.jsonl"}, "task.data 'none.jsonl' can't be read: No such file"),
        ({"question_column": "prompt"}, "line 1 has no column 'prompt', only 'question', 'answer', 'level'; set task."),
        ({"answer_column": "gold"}, "set task.answer_column, or to \"\" if there is none"),
        ({"answer_column": "level"}, "has a column 'answer', but task.answer_column is 'level'"),
        ({"options": {"a": 1}}, "task.options a: a file takes none"),
        ({"data": "my_rewards:wrong_rows"}, "row 2 is a list, expected a dict"),
        ({"data": "my_rewards:odd_rows"}, "row 1 can't be handed to other processes: object is not plain data"),
        ({"data": "my_rewards:broken_rows"}, f"the server is gone (my_rewards.py, line {line_of('raise OSError')})"),
        ({"data": "my_rewards:mani"}, "has no 'mani'; did you mean many?"),
        ({"data": "prompts"}, "task.data 'prompts' is unknown"),
        ({"reward": "my_rewards:exat"}, "has no 'exat'; did you mean exact?"),
        ({"reward": "my_rewards:many"}, "expected (prompt, answer, row)"),
        ({"reward": "maths"}, "task.reward 'maths' is unknown; did you mean math?"),
        ({"reward": "my_reward:exact"}, "there is no module 'my_reward'; did you mean my_rewards?"),
        ({"provider": "row"}, "task.provider 'row' is unknown; did you mean rows? known: jsonl_math"),
        ({"provider": "my_rewards:exact"}, "expected (settings, seed=..., deadline_s=..., num_workers=...)"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_told_before_anything_starts(
    make: Callable[..., Task], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises((TaskError, DoorError)) as caught:
        make(**settings)
    assert said in str(caught.value)
    assert not caught.value.can_heal


@confined
def test_rows_may_have_no_reference_answers(make: Callable[..., Task], folder: Path) -> None:
    (folder / "open.jsonl").write_text("".join(f'{{"question": "{number}"}}\n' for number in range(30)))
    task = make("my_rewards:named", "open.jsonl", answer_column="")
    assert score(task, "").score == 0.5
    with pytest.raises(TaskError, match=r"no reference answers to imitate"):
        task.target(task.problem("train", 0))


# The reward that comes with Weir


def test_math_scores_final_answers_in_place(make: Callable[..., Task], folder: Path) -> None:
    (folder / "math.jsonl").write_text(
        "".join(json.dumps({"q": f"{n} halves?", "a": f"so #### {n}/2"}) + "\n" for n in range(1, 40))
    )
    task = make("math", "math.jsonl", question_column="q", answer_column="a")
    number = int(task.problem("train", 0).question.split()[0])
    assert score(task, f"The answer is {number / 2}.").score == 1.0
    assert (score(task, "The answer is 1000.").score, score(task, "").parts) == (0.0, {"parsed": 0.0})
    with (folder / "math.jsonl").open("a") as file:
        file.write('{"q": "Odd", "a": "####"}\n')
    with pytest.raises(TaskError, match=r"can't score 1 of 40 rows:\n  row 40: "):
        make("math", "math.jsonl", question_column="q", answer_column="a")


def test_where_an_agent_plays_no_reward_is_needed_and_what_it_leaves_open_is_refused(
    make: Callable[..., Task], folder: Path
) -> None:
    (folder / "my_agent.py").write_text("def solve(base_url, row):\n    return None\n")
    agent = {"environment": "agent", "chat": True, "turns": 2, "episode": {"agent": "my_agent:solve"}}
    task = make(reward="", **agent)
    assert "my_agent:solve" in task.version
    (reason,) = task.score(RewardRequest(task.problem("heldout", 0), "4", "stop")).reasons
    assert reason == (
        "task.episode.agent 'my_agent:solve': the program returned no score, and task.reward is empty: "
        "return one, or set it"
    )
    with pytest.raises(TaskError, match=r"task\.reward is empty"):
        make(reward="")

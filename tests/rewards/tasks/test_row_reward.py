"""Rewards of rows: verifiers by name, functions of lists, weighted sums, servers; and functions that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from learner_jax.runtime import DoorError
from rewards.contracts import RewardResult, TaskError
from rewards.sandbox import confinement
from rewards.settings import TaskSettings
from rewards.tasks import RewardJudge, TaskJudge, create_judge, create_task
from tests.support.user_folder import working_in

confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")
MODULE = """
import os, sys, time

def lists(prompts, answers, rows):
    return [{"right": float(answer == row["answer"])} for answer, row in zip(answers, rows)]

async def later(prompts, answers, rows):
    return [0.5 for _ in answers]

def two(prompts, answers, rows):
    return [1.0, 1.0]

def no_list(prompts, answers, rows):
    return 1.0

def odd(prompt, answer, row):
    if answer == "print":
        for _ in range(1000):
            os.write(1, b"x" * 1_000_000)
        print("x" * 1_000_000)
        sys.stderr.write("y" * 1_000_000)
        return 1.0
    if answer == "fork":
        os.fork()
    if answer == "kill":
        os.kill(os.getpid(), 9)
    if answer == "fill":
        return len(bytearray(1 << 40))
    if answer == "exit":
        sys.exit(0)
    if answer == "half":
        raise ValueError("half a pair: \\ud800")
    if answer == "untold":
        raise Untold
    return 1.0

class Untold(BaseException):
    def __str__(self):
        raise RuntimeError("no text")

def short(prompt, answer, row):
    return 0.25
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "list_rewards.py").write_text(MODULE)
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture
def make() -> Iterator[Callable[..., RewardJudge | TaskJudge]]:
    made: list[RewardJudge | TaskJudge] = []

    def judge(**settings: Any) -> RewardJudge | TaskJudge:
        fields = TaskSettings.model_validate({"provider": "rows", **settings})
        made.append(create_judge(fields, seed=0, deadline_s=20, num_workers=1))
        return made[-1]

    yield judge
    for one in made:
        one.close()


ROW = {"question": "q", "answer": "4"}


def test_a_verifier_is_a_reward_and_its_finding_is_kept(make: Callable[..., RewardJudge]) -> None:
    judge = make(reward="math")
    assert judge.judge("\\boxed{4}", ROW).finding == "correct"
    assert judge.judge("4", {"question": "q"}).verdict == "refused"
    assert make(reward="fuzzy").judge("Four!", {**ROW, "answer": "four"}).score == 1


@confined
@pytest.mark.parametrize(("name", "score"), [("lists", 1.0), ("later", 0.5)])
def test_a_function_of_lists(make: Callable[..., RewardJudge], name: str, score: float) -> None:
    assert make(reward=f"list_rewards:{name}").judge("4", ROW).score == score


@confined
@pytest.mark.parametrize(("name", "said"), [("two", "2 scores for 1 answer"), ("no_list", "expected a list")])
def test_a_list_of_the_wrong_length_is_an_error(make: Callable[..., RewardJudge], name: str, said: str) -> None:
    result = make(reward=f"list_rewards:{name}").judge("4", ROW)
    assert (result.score, result.verdict) == (None, "error")
    assert said in result.reasons[0]
    assert ".py" not in result.reasons[0], "no line of the function is at fault"


@confined
def test_a_message_that_is_no_text_is_told_all_the_same(make: Callable[..., RewardJudge]) -> None:
    said = make(reward="list_rewards:odd").judge("half", ROW).reasons[0]
    assert said.startswith(r"ValueError: half a pair: \ud800 (list_rewards.py, line ")


@confined
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(answer, "error") for answer in ("fork", "kill", "fill", "exit", "untold")] + [("print", "pass")],
)
def test_a_function_that_misbehaves_leaves_the_next_answer_alone(
    make: Callable[..., RewardJudge], answer: str, verdict: str
) -> None:
    judge = make(reward="list_rewards:odd")
    assert judge.judge(answer, ROW).verdict == verdict
    assert judge.judge("", ROW).score == 1


@confined
def test_a_weighted_sum_names_its_parts(make: Callable[..., RewardJudge]) -> None:
    rewards = [{"use": "math", "weight": 2}, {"use": "list_rewards:short", "name": "brief", "weight": -1}]
    judge = make(rewards=rewards)
    result = judge.judge("4", ROW)
    assert result.score == 1.75
    assert result.parts == {"math": 1.0, "math.parsed": 1.0, "brief": 0.25}
    failed = judge.judge("4", {"question": "q"})
    assert (failed.score, failed.verdict) == (None, "refused")
    assert failed.reasons[0].startswith("math: ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reward": "math", "rewards": [{"use": "exact"}]}, "both set"),
        ({"rewards": [{"use": "math"}, {"use": "math"}]}, "two parts called 'math'"),
        ({"rewards": [{"use": "math", "wheight": 1}]}, "wheight"),
        ({"rewards": [{"use": "math", "weight": float("nan")}]}, "finite"),
        ({"rewards": [{"use": "math", "weight": "1"}]}, "number"),
    ],
)
def test_wrong_weights_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TaskSettings.model_validate({"provider": "rows", **settings})


def test_unknown_names_in_a_sum_are_told(make: Callable[..., RewardJudge]) -> None:
    with pytest.raises(DoorError, match="did you mean math"):
        make(rewards=[{"use": "exact"}, {"use": "maths"}])


def test_a_task_of_rows_refuses_rows_that_its_verifier_cannot_judge(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"question": "a", "answer": "4"}\n{"question": "b", "answer": "\\\\int x"}\n')
    with pytest.raises(TaskError, match=r"can't score 1 of 2 rows:\n  row 2: "):
        create_task(TaskSettings(provider="rows", data="rows.jsonl", reward="math"), seed=0)


class _Server:
    """Scores with 1 if the answer is the reference, after as many failures as it is told."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.keys: list[str | None] = []
        self.failures = 0
        self.reply: Callable[[int], Any] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
                outer.sizes.append(len(items))
                outer.keys.append(self.headers["Authorization"])
                outer.failures -= 1
                self.send_response(503 if outer.failures >= 0 else 200)
                self.end_headers()
                scores = [float(item["answer"] == item["row"]["answer"]) for item in items]
                self.wfile.write(json.dumps({"scores": outer.reply(len(items)) if outer.reply else scores}).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/score"


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_server_gets_batches_and_the_key(
    make: Callable[..., RewardJudge], server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_REWARD_KEY", "secret")
    judge = make(reward=server.url, reward_key="MY_REWARD_KEY")

    def one(number: int) -> RewardResult:
        return judge.judge(str(number % 5), ROW)

    with ThreadPoolExecutor(32) as threads:
        results = list(threads.map(one, range(64)))
    assert [result.score for result in results] == [float(number % 5 == 4) for number in range(64)]
    assert sum(server.sizes) == 64
    assert max(server.sizes) > 1
    assert set(server.keys) == {"Bearer secret"}


def test_a_server_that_is_busy_is_asked_again(make: Callable[..., RewardJudge], server: _Server) -> None:
    server.failures = 2
    assert make(reward=server.url).judge("4", ROW).score == 1
    assert len(server.sizes) == 3


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda count: [1.0] * (count + 1), "gave 2 scores for 1 answers"),
        (lambda count: "1", "gave str scores"),
        (lambda count: [None], "a reward is None"),
        (lambda count: [float("nan")], "finite"),
    ],
)
def test_a_servers_wrong_reply_is_an_error(
    make: Callable[..., RewardJudge], server: _Server, reply: Callable[[int], Any], said: str
) -> None:
    server.reply = reply
    result = make(reward=server.url).judge("4", ROW)
    assert (result.score, result.verdict) == (None, "error")
    assert said in result.reasons[0]


def test_a_server_that_is_not_there_is_a_timeout_and_bad_addresses_are_told(make: Callable[..., RewardJudge]) -> None:
    settings = TaskSettings(provider="rows", reward="http://127.0.0.1:9/")
    judge = create_judge(settings, seed=0, deadline_s=0.5, num_workers=1)
    assert judge.judge("4", ROW).verdict == "timeout"
    judge.close()
    for reward in ("http://", "http://user:pw@127.0.0.1/", "http://a b/"):
        with pytest.raises(TaskError, match=r"task\.reward"):
            make(reward=reward)
    with pytest.raises(TaskError, match="NOT_SET is not set"):
        make(reward="http://127.0.0.1:9/", reward_key="NOT_SET")

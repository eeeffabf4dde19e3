"""docs/extend: every example is complete, short, and runs against an installed Weir, outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards.sandbox import confinement
from tests.support.extend_pages import MAX_LINES, PAGES, files_of, write
from tests.support.installed import installed

EXAMPLES = ("reward", "data", "environment", "tools", "retrieval", "task")
confined = pytest.mark.skipif(confinement.missing() != "", reason=f"this machine: {confinement.missing()}")
#: Plays answers as a rollout worker does, and prints where Weir is and what each answer earned.
PLAY = """
import asyncio, inspect, json, sys
import rewards
from configs.load import load_config
from rewards.contracts import Reply
from rewards.environments import create_environment
from tools.assembly import build_task

config = load_config(sys.argv[1])
task = build_task(config)
environment = create_environment(task, config.task)

def found(question):
    for split in ("train", "validation", "heldout"):
        for index in range(min(task.num_distinct(split) or 100, 100)):
            problem = task.problem(split, index)
            if problem.question == question:
                return problem
    raise LookupError(question)

def now(value):
    return loop.run_until_complete(value) if inspect.isawaitable(value) else value

loop = asyncio.new_event_loop()

def rewards_of(question, answers):
    state = now(environment.reset(found(question)))
    for answer in answers:
        outcome = now(environment.step(state, Reply(answer, "stop", False)))
        assert outcome.reward is not None, outcome.reasons
        state = outcome.state
        yield round(outcome.reward, 6)

earned = [list(rewards_of(*case)) for case in json.loads(sys.argv[2])]
print(json.dumps({"weir": rewards.__file__, "earned": earned}))
task.close()
"""


def cases_of(page: str) -> list[tuple[str, list[str], list[float]]]:
    """Question, answers and scores of each row of a page's table."""
    text = (PAGES / f"{page}.md").read_text()
    table = text.split("| question | answer | score |\n|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(question, answer.split(" / "), list(map(float, score.split(" / ")))) for question, answer, score in rows]


@pytest.fixture(scope="module")
def weir() -> Path:
    """A folder with an installed Weir: its wheel, unpacked, and no checkout."""
    return installed()


def play(weir: Path, folder: Path, config: str, cases: list[tuple[str, list[str]]], **variables: str) -> list[Any]:
    command = [sys.executable, "-P", "-c", PLAY, config, json.dumps(cases)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(weir), **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["weir"].startswith(str(weir)), "the checkout must not be what runs"
    earned: list[Any] = said["earned"]
    return earned


@confined
@pytest.mark.parametrize("page", EXAMPLES)
def test_an_example_scores_as_its_page_says(page: str, weir: Path, tmp_path: Path) -> None:
    write(page, tmp_path)
    cases = cases_of(page)
    scores = [scores for _, _, scores in cases]
    assert len({tuple(each) for each in scores}) > 1, "a page shows a right answer and a wrong one"
    assert play(weir, tmp_path, "config.toml", [(question, answers) for question, answers, _ in cases]) == scores


class Judge(BaseHTTPRequestHandler):
    """Half a point for each answer that holds the reference."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = json.dumps({"score": 0.5 * (body["reference"] in body["answer"])}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def judge() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Judge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_judge_of_the_page_is_asked(weir: Path, tmp_path: Path, judge: str) -> None:
    write("reward", tmp_path)
    cases = [("What is the capital of Italy?", [answer]) for answer in ("Rome!", "Oslo")]
    assert play(weir, tmp_path, "judge.toml", cases, JUDGE_URL=judge) == [[0.5], [0.0]]


@confined
def test_the_sum_of_the_page_is_weighted(weir: Path, tmp_path: Path) -> None:
    write("reward", tmp_path)
    cases = [("What is the capital of Italy?", [answer]) for answer in ("Oslo", "<think>a</think><answer>b</answer>")]
    assert play(weir, tmp_path, "several.toml", cases) == [[0.1], [0.3]]


@pytest.mark.parametrize("page", EXAMPLES)
def test_an_example_is_short(page: str) -> None:
    files = files_of(page)
    lines = [line for name, text in files.items() if name.endswith(".py") for line in text.splitlines() if line.strip()]
    assert 0 < len(lines) <= MAX_LINES, len(lines)
    assert "config.toml" in files

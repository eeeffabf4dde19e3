"""lighteval, a program of its own, against a replica of Weir: what it reports is what was made sure of.

It belongs into an environment of its own, whose program WEIR_LIGHTEVAL or PATH names. docs/evaluation.md has the
versions of its packages with which lighteval 0.13 works.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.fleet import Replica
from tests.support.evaluation_programs import Ask, evaluated, reported

_PROGRAM = os.environ.get("WEIR_LIGHTEVAL") or shutil.which("lighteval")
_BEGINS = ("Once upon a time", "Lily and Tom", "The little dog", "One day, a big", "Sue was", "There was a red")
_TOKENS = 12
#: Says what a model was told, and nothing else: this one has seen no chats.
_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
_TASKS = """
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def prompt(line, task_name=None):
    return Doc(task_name=task_name, query=line["prompt"], choices=[line["answer"]], gold_index=0)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="beginnings",
        prompt_function=prompt,
        hf_repo="ROWS",
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[Metrics.exact_match],
        generation_size=TOKENS,
        stop_sequence=[],
    )
]
"""

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_PROGRAM is None, reason="lighteval is not there: see docs/evaluation.md; WEIR_LIGHTEVAL"),
]


def chatting(model: Path, folder: Path) -> Path:
    """The model with a chat template, which lighteval's way to an endpoint needs."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | {"chat_template": _TEMPLATE}))
    return folder


def write_task(folder: Path, answers: list[str]) -> Path:
    """Every third reference is wrong."""
    rows = folder / "rows"
    rows.mkdir()
    lines = [
        {"prompt": begin, "answer": "something else" if number % 3 == 0 else own}
        for number, (begin, own) in enumerate(zip(_BEGINS, answers, strict=True))
    ]
    (rows / "test.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = folder / "beginnings.py"
    path.write_text(_TASKS.replace("ROWS", str(rows)).replace("TOKENS", str(_TOKENS)))
    return path


def lighteval(folder: Path, url: str, token: str, tasks: Path) -> dict[str, Any]:
    """What the program reports."""
    about = f"model_name=openai/policy,provider=openai,base_url={url}/v1,max_model_length=128"
    about += f",concurrent_requests=4,generation_parameters={{temperature:0.0}},cache_dir={folder / 'cache'}"
    command = [str(_PROGRAM), "endpoint", "litellm", about, "beginnings|0", "--custom-tasks", str(tasks)]
    command += ["--output-dir", str(folder / "out"), "--save-details"]
    return reported(command, folder, token, LITELLM_LOCAL_MODEL_COST_MAP="True")


async def answers(ask: Ask) -> list[str]:
    found = [await ask({"max_tokens": _TOKENS, "messages": [{"role": "user", "content": begin}]}) for begin in _BEGINS]
    return [answer["choices"][0]["message"]["content"] for answer in found]


def test_generated_answers_are_those_of_the_replica(stories_model: Path, tmp_path: Path) -> None:
    def run(own: list[str], replica: Replica) -> dict[str, Any]:
        return lighteval(tmp_path, replica.base_url, replica.client.token, write_task(tmp_path, own))

    model = chatting(stories_model, tmp_path / "model")
    found = evaluated(model, tmp_path, "/v1/chat/completions", answers, run)
    assert found["beginnings|0"]["em"] == pytest.approx(4 / 6)

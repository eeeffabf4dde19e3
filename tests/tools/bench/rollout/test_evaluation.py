"""The benchmark of evaluations: Weir's side asks for what the others ask, and counts what it got."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from serving_bridge.evaluation import PromptEncoder
from serving_bridge.text import Tokenizer
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import FakeReplica, FakeSession
from tools.bench.__main__ import main
from tools.bench.rollout.evaluation import evaluated
from tools.bench.rollout.rollout import Additions, Work

WORK = Work(groups=6, group_size=1, tokens=3, concurrency=2)


class Served:
    """Stands for `tools.bench.rollout.rollout.Server`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, replica: FakeReplica) -> None:
        self.folder, self.work, self.replica = folder, WORK, self
        self.client = VllmClient("http://a", FakeSession({"a": replica}))
        endless = dataclasses.replace(tokenizer, eos_ids=())
        self.encoder = PromptEncoder(endless, template="{question}", chat=False, max_prompt_tokens=200)


def test_the_round_asks_each_prompt_once_and_keeps_every_answer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    replica = FakeReplica(stop=0.0)
    asyncio.run(evaluated(Served(tmp_path, tokenizer, replica), 1))  # type: ignore[arg-type]
    parameters = [body["sampling_params"] for body in replica.bodies]
    assert {(p["n"], p["max_tokens"], p["temperature"], p["ignore_eos"]) for p in parameters} == {(1, 3, 1.0, True)}
    assert not any(p["stop_token_ids"] or "seed" in p for p in parameters)
    lines = [json.loads(line) for line in (tmp_path / "answers-1.jsonl").read_text().splitlines()]
    assert sorted(line["problem"] for line in lines) == list("012345")
    assert {line["prompt"] for line in lines} == {Additions(6).problem("heldout", i).question for i in range(6)}


def test_it_is_a_benchmark_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--requests", "0"])
    assert stop.value.code == 2
    assert "--requests: expected a whole number of at least 1" in capsys.readouterr().err

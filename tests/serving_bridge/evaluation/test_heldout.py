"""Held-out evaluations amid training: when one is due, how it samples, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serving_bridge.evaluation.heldout import HeldOut
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings
from serving_bridge.text.tokenizer import Tokenizer
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import AdditionTask, FakeReplica, FakeSession, Inline, virtually

Make = Callable[..., HeldOut]


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def make(tokenizer: Tokenizer, records: list[dict[str, Any]]) -> Make:
    def held_out(**settings: Any) -> HeldOut:
        return HeldOut(
            AdditionTask(),
            PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=20),
            EvaluationSettings(num_problems=3, **settings),
            RolloutSettings(max_prompt_tokens=20, max_tokens=4),
            scoring=Inline(),
            log=lambda event, **fields: records.append({"event": event, **fields}),
        )

    return held_out


def test_one_is_due_at_the_start_and_once_for_every_so_many_steps(make: Make) -> None:
    held_out = make(every=4)
    steps = (0, 0, 3, 4, 4, 5, 9, 11, 12, 30, 31, 32)
    assert [step for step in steps if held_out.is_due(step)] == [0, 4, 9, 12, 30, 32]
    never = make(every=0)
    assert [step for step in steps if never.is_due(step)] == []


@pytest.mark.parametrize(("settings", "max_tokens"), [({}, 4), ({"max_tokens": 7}, 7)])
def test_answers_are_as_long_as_asked_for(make: Make, settings: dict[str, Any], max_tokens: int) -> None:
    replica = FakeReplica(stop=1.0)
    client = VllmClient("http://a", FakeSession({"a": replica}))
    virtually(make(**settings).evaluate(client, ReplicaRow("a", "http://a", "healthy", 3, 2, 0.0)))
    assert [body["sampling_params"]["max_tokens"] for body in replica.bodies] == [max_tokens]


def test_the_skill_of_what_a_replica_serves_is_written(make: Make, records: list[dict[str, Any]]) -> None:
    client = VllmClient("http://a", FakeSession({"a": FakeReplica(version=3, stop=0.0)}))
    virtually(make().evaluate(client, ReplicaRow("a", "http://a", "healthy", 3, 2, 0.0)))
    (record,) = records
    assert {name: record[name] for name in ("event", "version", "step", "num_problems", "num_cut", "versions")} == {
        "event": "heldout", "version": 3, "step": 2, "num_problems": 3, "num_cut": 3, "versions": (3, 3),
    }  # fmt: skip
    assert (record["accuracy"], record["num_skipped"], record["failed_verdicts"]) == (0.0, 0, {})
    assert [sorted(sample) for sample in record["samples"]] == [
        ["answer", "expected", "is_cut", "prompt", "reason", "score", "verdict"]
    ] * 3
    assert all(sample["is_cut"] for sample in record["samples"])

"""Settings of the serving side: what is refused, and that the last value in order is taken."""

from __future__ import annotations

from typing import Any

import pytest

from serving_bridge.settings import EvaluationSettings, RolloutSettings, ServingSettings, StoreSettings


def serving(**given: Any) -> ServingSettings:
    return ServingSettings(max_model_len=64, **given)


def rollout(**given: Any) -> RolloutSettings:
    return RolloutSettings(max_prompt_tokens=8, max_tokens=4, **given)


def test_a_fleet_has_as_many_replicas_as_must_serve() -> None:
    assert serving(replicas=2, min_healthy=2).replicas == 2
    with pytest.raises(ValueError, match=r"replicas is 2, expected at least min_healthy \(3\)"):
        serving(replicas=2, min_healthy=3)


def test_every_replica_has_a_port_that_exists() -> None:
    assert serving(replicas=2, port=65534).port == 65534
    assert serving(replicas=70_000, port=0).port == 0
    with pytest.raises(ValueError, match="the last one would listen on 65536"):
        serving(replicas=2, port=65535)


def test_limits_of_concurrency_are_in_order() -> None:
    assert rollout(min_concurrency=5, max_concurrency=5).max_concurrency == 5
    with pytest.raises(ValueError, match=r"max_concurrency is 4, expected at least min_concurrency \(5\)"):
        rollout(min_concurrency=5, max_concurrency=4)


def test_an_episode_has_room_for_a_prompt_and_its_answer() -> None:
    assert rollout(max_episode_tokens=12).episode_tokens(3) == 12
    assert rollout().episode_tokens(3) == 36
    with pytest.raises(ValueError, match="max_episode_tokens is 11, but a prompt and its first answer can take 12"):
        rollout(max_episode_tokens=11)


def test_an_evaluation_is_greedy_or_at_a_temperature_that_vllm_has() -> None:
    assert [EvaluationSettings(temperature=t).temperature for t in (0.0, 0.01)] == [0.0, 0.01]
    with pytest.raises(ValueError, match=r"temperature is 0\.005, but vLLM would sample at 0\.01"):
        EvaluationSettings(temperature=0.005)


@pytest.mark.parametrize(
    "database", ["", "run/state.db", "sqlite:///state.db", "postgresql://user@host/name", "postgres://user@host/name"]
)
def test_databases_that_processes_can_share_are_taken(database: str) -> None:
    assert StoreSettings(database=database).database == database


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("mysql://user@host/name", r"database mysql://\.\.\.: expected a path"),
        ("sqlite://state.db", r"database sqlite://\.\.\.: expected a path"),
        (":memory:", "every process would have one of its own"),
        ("sqlite:///", "every process would have one of its own"),
        ("sqlite:///:memory:", "every process would have one of its own"),
        ("postgresql://user:secret@host/name", "password"),
    ],
)
def test_other_databases_are_refused(database: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StoreSettings(database=database)


def test_a_queue_has_room_for_the_largest_group() -> None:
    assert StoreSettings(max_queued_bytes=1000, max_group_bytes=1000).max_queued_bytes == 1000
    with pytest.raises(ValueError, match=r"max_queued_bytes is 999, expected at least max_group_bytes \(1000\)"):
        StoreSettings(max_queued_bytes=999, max_group_bytes=1000)

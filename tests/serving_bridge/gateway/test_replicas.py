"""The choice of a replica: load, conversations, failures in a row, and how full all are together."""

from __future__ import annotations

from collections import Counter

import pytest

from serving_bridge.access import FreshKeys
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.replicas import Load, Pressure, Replicas
from serving_bridge.routing import ReplicaRow
from serving_bridge.vllm import DEFERRED, USERS_KV_USAGE


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def row(name: str, start: str = "s", version: int = 3) -> ReplicaRow:
    return ReplicaRow(name, f"http://10.0.0.1:{ord(name[-1])}", "healthy", version, 0, 0.0, start=start)


def replicas(*names: str) -> tuple[Replicas, Clock]:
    clock = Clock()
    found = Replicas(FreshKeys(), clock)
    found.update([row(name) for name in names])
    return found, clock


def test_a_conversation_stays_and_conversations_spread() -> None:
    found, _ = replicas("a", "b", "c")
    other, _ = replicas("c", "a", "b")
    homes = Counter[str]()
    for number in range(300):
        conversation = f"conversation {number}"
        first = found.take(conversation, 1)
        again = other.take(conversation, 1)
        assert first.name == again.name, "another process of the gateway sends it elsewhere"
        found.give_back(first, 1, answered=True)
        other.give_back(again, 1, answered=True)
        homes[first.name] += 1
    assert min(homes.values()) > 70


def test_without_a_replica_only_its_own_conversations_move() -> None:
    homes = [replicas(*names)[0] for names in ("abcd", "abc")]
    found = [[each.take(f"{number}", 0).name for number in range(200)] for each in homes]
    assert all(before == after or before == "d" for before, after in zip(*found, strict=True))
    assert found[0].count("d") > 20


def test_a_replica_that_is_much_busier_loses_even_its_own_conversations() -> None:
    found, _ = replicas("a", "b")
    home = found.take("x", 1)
    taken = [found.take("x", 1).name for _ in range(40)]
    assert taken[0] == home.name
    counts = Counter(taken)
    assert abs(counts["a"] - counts["b"]) < 20, counts
    other = next(target for target in found.targets if target is not home)
    found.looked(other, Load(requests=200, waiting=100, kv_usage=0.9))
    assert {found.take(f"{i}", 1).name for i in range(20)} == {home.name}, "what others sent there counts too"


def test_a_failing_replica_is_avoided_twice_as_long_each_time_and_tried_by_one_request() -> None:
    found, clock = replicas("a")

    for failures, avoided_s in ((3, 1.0), (1, 2.0), (1, 4.0)):
        for _ in range(failures):
            found.give_back(found.take("x", 1), 1, failed=True)
        with pytest.raises(GatewayError) as refused:
            found.take("x", 1)
        assert refused.value.status == 503
        clock.now_s += avoided_s - 0.01
        with pytest.raises(GatewayError):
            found.take("x", 1)
        clock.now_s += 0.02
    trial = found.take("x", 1)
    with pytest.raises(GatewayError):
        found.take("x", 1)
    found.give_back(trial, 1, answered=True)
    for _ in range(5):
        found.take("x", 1)
    assert found.totals()["a"] == (1, 5)


def test_one_that_was_started_again_begins_anew() -> None:
    found, _ = replicas("a")
    for _ in range(3):
        found.give_back(found.take("x", 1), 1, failed=True)
    with pytest.raises(GatewayError):
        found.take("x", 1)
    token = found.targets[0].token
    found.update([row("a", start="another")])
    assert found.take("x", 1).token != token
    found.update([row("a", start="another", version=9)])
    assert found.targets[0].version == 9
    assert found.targets[0].in_flight == 1


def test_another_replica_is_asked_next_where_there_is_one() -> None:
    found, _ = replicas("a", "b")
    first = found.take("x", 1)
    assert found.take("x", 1, {first.name}).name != first.name
    alone, _ = replicas("a")
    assert alone.take("x", 1, {"a"}).name == "a"


def test_pressure() -> None:
    found, clock = replicas("a", "b")
    assert found.pressure() is None
    a, b = found.targets
    found.looked(a, Load(10, 0, 0.5, queued_s=10.0, begun=100))
    found.looked(b, Load(10, 4, 0.9, queued_s=0.0, begun=0))
    assert found.pressure() == Pressure(0.7, 0.0)
    clock.now_s += 1
    found.looked(a, Load(10, 0, 0.5, queued_s=12.0, begun=104))
    found.looked(b, Load(10, 4, 0.9, queued_s=0.0, begun=0))
    assert found.pressure() == Pressure(0.7, 0.75), "0.5 s each, and 1 s that nobody got on"
    clock.now_s += 1
    found.looked(b, Load(10, 0, 0.1, queued_s=0.0, begun=0))
    assert found.pressure() == Pressure(0.3, 0.25)


def test_training_that_is_held_for_users_is_no_queue() -> None:
    waiting = {"vllm:num_requests_running": 3.0, "vllm:num_requests_waiting": 9.0, DEFERRED: 7.0}
    assert Load.of_metrics(waiting) == Load(requests=12.0, waiting=2.0, kv_usage=0.0)


def test_memory_that_training_holds_sheds_no_user() -> None:
    full = {"vllm:kv_cache_usage_perc": 0.97}
    assert Load.of_metrics(full | {USERS_KV_USAGE: 0.25}).kv_usage == 0.25
    assert Load.of_metrics(full).kv_usage == 0.97

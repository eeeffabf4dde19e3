"""Events become the metrics of the table, and what is hostile or too much is left out."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving_bridge.metrics import METRICS, ROLES, Latest, Metric, Role
from serving_bridge.metrics.latest import MAX_SERIES

Series = dict[tuple[str, ...], float]

STEP = {
    "t": 100.0,
    "event": "step",
    "step": 7,
    "version": 6,
    "loss": -0.5,
    "reward": 0.25,
    "reward_parts": {"format": 1.0, "score": 0.5},
    "kl": 0.01,
    "num_tokens": 256,
    "wait_s": 0.5,
    "skipped": 0.0,
}


def page(latest: Latest) -> str:
    registry = CollectorRegistry()
    registry.register(latest)
    return generate_latest(registry).decode()


def series(latest: Latest, name: str) -> Series:
    """Label values -> value of a metric, as a scrape finds them."""
    samples = [sample for family in text_string_to_metric_families(page(latest)) for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name == name}


def test_a_gauge_is_the_newest_value_and_a_counter_adds_up() -> None:
    latest = Latest(METRICS["learner"])
    assert series(latest, "weir_learner_tokens_total") == {(): 0.0}, "a rate needs a beginning"
    assert series(latest, "weir_learner_loss") == {}
    latest.take(STEP)
    latest.take(STEP | {"step": 8, "loss": -0.25, "t": 103.0})
    assert series(latest, "weir_learner_loss") == {(): -0.25}
    assert series(latest, "weir_learner_step") == {(): 8.0}
    assert series(latest, "weir_learner_steps_total") == {(): 2.0}
    assert series(latest, "weir_learner_tokens_total") == {(): 512.0}
    assert series(latest, "weir_learner_wait_seconds_total") == {(): 1.0}
    assert series(latest, "weir_learner_last_step_timestamp_seconds") == {(): 103.0}
    assert series(latest, "weir_last_event_timestamp_seconds") == {(): 103.0}


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", [1.0], {"a": 1.0}])
def test_what_was_not_measured_is_absent_rather_than_old(value: object) -> None:
    latest = Latest(METRICS["learner"])
    latest.take(STEP)
    latest.take(STEP | {"kl": value, "num_tokens": value})
    assert series(latest, "weir_learner_kl_nats") == {}
    assert series(latest, "weir_learner_tokens_total") == {(): 256.0}


def test_parts_of_the_reward_are_those_of_the_newest_step() -> None:
    latest = Latest(METRICS["learner"])
    latest.take(STEP)
    latest.take(STEP | {"reward_parts": {"score": 0.75}})
    assert series(latest, "weir_learner_reward_part_mean") == {("score",): 0.75}


def test_label_values_are_plain_names_and_bounded() -> None:
    latest = Latest(METRICS["learner"])
    hostile = ['a"b', "a\nb", "", "x" * 65, "{}", "Ünicode", "a b"]
    latest.take(STEP | {"reward_parts": dict.fromkeys([*hostile, "fine"], 1.0)})
    assert series(latest, "weir_learner_reward_part_mean") == {("fine",): 1.0}
    assert series(latest, "weir_labels_refused_total") == {(): float(len(hostile))}
    latest.take(STEP | {"reward_parts": {f"part{index}": 1.0 for index in range(MAX_SERIES + 10)}})
    assert len(series(latest, "weir_learner_reward_part_mean")) == MAX_SERIES
    assert series(latest, "weir_labels_refused_total") == {(): len(hostile) + 10.0}


def test_a_replica_has_one_state_and_is_forgotten_when_it_is_gone() -> None:
    latest = Latest(METRICS["fleet"])
    for name in ("vm-0", "vm-1"):
        latest.take({"event": "replica", "replica": name, "state": "starting", "version": -1})
        latest.take({"event": "replica", "replica": name, "state": "healthy", "version": 3})
        latest.take({"event": "round", "replica": name, "outcome": "updated", "pause_s": 0.5, "version": 3})
    assert series(latest, "weir_fleet_replica_state") == {("vm-0", "healthy"): 1.0, ("vm-1", "healthy"): 1.0}
    latest.take({"event": "replica", "replica": "vm-0", "state": "gone", "version": 3})
    assert series(latest, "weir_fleet_replica_state") == {("vm-1", "healthy"): 1.0}
    assert series(latest, "weir_fleet_replica_version") == {("vm-1",): 3.0}
    assert series(latest, "weir_fleet_pause_seconds_total") == {("vm-0",): 0.5, ("vm-1",): 0.5}
    assert series(latest, "weir_fleet_rounds_total") == {("updated",): 2.0}


def test_a_state_of_several_words_is_one_name() -> None:
    latest = Latest(METRICS["train"])
    latest.take({"event": "phase", "name": "supervised start", "t": 5.0})
    latest.take({"event": "queue", "up": 1})
    assert series(latest, "weir_run_phase") == {("supervised_start",): 1.0}
    assert series(latest, "weir_last_event_timestamp_seconds") == {(): 5.0}, "a look at the queue is no event"


def test_the_longest_wait_ends_with_the_waits() -> None:
    latest = Latest(METRICS["rollout"])
    latest.take({"event": "waits", "waits": [{"what": "x", "waited_s": 2.0}, {"what": "y", "waited_s": 5.5}]})
    assert series(latest, "weir_longest_wait_seconds") == {(): 5.5}
    latest.take({"event": "waits", "waits": []})
    assert series(latest, "weir_longest_wait_seconds") == {(): 0.0}


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event": None},
        {"event": 5},
        {"event": "replica", "replica": 7, "state": []},
        {"event": "replica", "replica": ["x"], "state": "gone"},
        {"event": "step", "reward_parts": 3},
        {"event": "step", "reward_parts": {"a": {"b": 1}}},
        {"event": "waits", "waits": 3},
        {"event": "waits", "waits": [1, None, {"waited_s": "x"}]},
        {"event": "round", "outcome": None, "replica": None, "pause_s": -1.0},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("role", ROLES)
def test_no_event_can_break_it(role: Role, event: dict[str, object]) -> None:
    latest = Latest(METRICS[role])
    latest.take(event)
    assert "weir_labels_refused_total" in page(latest)


def all_metrics() -> list[Metric]:
    return list(dict.fromkeys(metric for metrics in METRICS.values() for metric in metrics))


def test_names_are_given_once_and_say_kind_and_unit() -> None:
    names = [metric.name for metric in all_metrics()]
    assert len(names) == len(set(names))
    for metric in all_metrics():
        assert re.fullmatch(r"weir_[a-z]+(_[a-z]+)*", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        for unit in ("seconds", "bytes"):
            said = metric.unit.removeprefix("unix ") == unit
            assert said == bool(re.search(rf"_{unit}(_total)?$", metric.name)), metric.name
        captured = metric.field.split(".").count("*") + (metric.kind == "state")
        assert len(metric.labels) == len(metric.by) + captured, metric.name
        assert metric.meaning
        assert not metric.meaning.endswith("."), metric.name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
@pytest.mark.parametrize("role", ROLES)
def test_promtool_finds_nothing_wrong_with_a_page(role: Role) -> None:
    latest, events = Latest(METRICS[role]), dict[str, dict[str, Any]]()
    for metric in METRICS[role]:
        event = events.setdefault(metric.event, {"event": metric.event, "t": 1.0})
        first, *path = metric.field.split(".")
        if path == ["*"]:
            event[first] = {"name": 1.0}
        elif path:
            event.setdefault(first, {"name": {}})["name"][path[-1]] = 1.0
        elif first:
            event.setdefault(first, [] if metric.largest else "name" if metric.kind == "state" else 1.0)
        event |= dict.fromkeys(metric.by, "name")
    for event in events.values():
        latest.take(event)
    text = page(latest)
    absent = [m.name for m in METRICS[role] if not re.search(rf"^{m.name}[ {{]", text, re.MULTILINE)]
    assert not absent
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

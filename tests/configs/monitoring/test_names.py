"""Every metric that rules and dashboards name is one that a process serves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving_bridge.metrics import METRICS
from tests.conftest import REPOSITORY

MONITORING = REPOSITORY / "configs" / "monitoring"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
LABELS = {metric.name: set(metric.labels) for metrics in METRICS.values() for metric in metrics}
#: Labels that a scrape adds.
SCRAPED = {"weir_run", "weir_role", "weir_process"}
#: What prometheus_client and Prometheus give themselves.
OTHERS = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
#: Of vLLM; tests/serving_bridge and the soak meet a real one, which serves them.
VLLM = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
}
WORDS = {
    "by",
    "on",
    "unless",
    "and",
    "sum",
    "max",
    "min",
    "avg",
    "count",
    "rate",
    "increase",
    "time",
    "avg_over_time",
    "clamp_min",
}


def names(query: str) -> set[str]:
    """The metrics that a query names."""
    without_labels = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", query)
    without_groups = re.sub(r"\b(by|on)\s*\([^)]*\)", " ", without_labels)
    return set(re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*", without_groups)) - WORDS


def labels(query: str) -> set[str]:
    """The labels that a query groups by or selects."""
    grouped = " ".join(re.findall(r"\bby\s*\(([^)]*)\)", query)).replace(",", " ").split()
    return {*grouped, *re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query)}


def unknown(query: str) -> set[str]:
    """What a query names that nothing serves."""
    found = names(query)
    known = SCRAPED.union(*(LABELS.get(name, set()) for name in found))
    if found & VLLM:
        known = known | {"replica"}
    return (found - LABELS.keys() - RECORDED - OTHERS - VLLM) | (labels(query) - known)


def panels(path: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(path.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_names_metrics_that_are_served(rule: dict[str, Any]) -> None:
    assert names(rule["expr"])
    assert not unknown(rule["expr"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_names_metrics_that_are_served_and_says_what_it_shows(path: Path) -> None:
    found = list(panels(path))
    assert len(found) >= 10
    for panel in found:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert names(target["expr"]), panel["title"]
            assert not unknown(target["expr"]), panel["title"]
    ids = [panel["id"] for panel in json.loads(path.read_text())["panels"]]
    assert len(ids) == len(set(ids))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found]
    assert len(places) == len(set(places)), "panels lie on each other"


def test_a_name_that_nothing_serves_is_noticed() -> None:
    assert unknown('max by (weir_run) (rate(weir_learner_gone_total{weir_run="x"}[5m]))') == {"weir_learner_gone_total"}
    assert unknown("sum by (replica) (weir_learner_loss)") == {"replica"}
    assert unknown('weir_fleet_replica_state{colour="x"}') == {"colour"}
    assert {path.stem for path in DASHBOARDS} == {"training", "serving"}

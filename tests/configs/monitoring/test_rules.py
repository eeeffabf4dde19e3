"""Each alert fires when it should and on nothing else; each has its entry in the runbook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import yaml

from tests.conftest import REPOSITORY

RULES = REPOSITORY / "configs" / "monitoring" / "rules.yml"
GROUPS = {group["name"]: group["rules"] for group in yaml.safe_load(RULES.read_text())["groups"]}
ALERTS = {rule["alert"]: rule for rule in GROUPS["alerts"]}
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed: rules are not evaluated"
)

Series = dict[str, str]


class Case(NamedTuple):
    """Series of half an hour, a value a minute, with which an alert fires at its end and, healthy, does not.

    Attributes:
      wrong, healthy: series (without the run's labels) -> values, in promtool's notation.
      labels: of the alert that fires, beside the run's and its severity.
    """

    wrong: Series
    healthy: Series
    labels: Mapping[str, str] = MappingProxyType({})


def gauge(name: str, wrong: float, healthy: float) -> Case:
    return Case({name: f"{wrong}x30"}, {name: f"{healthy}x30"})


def counted(name: str, **labels: str) -> Case:
    """A counter that goes up by one shortly before the end."""
    return Case({name: "0x28 1x2"}, {name: "0x30"}, labels)


LEARNER, CANARY, PROCESS = "weir_learner_", "weir_canary_", {"weir_process": "p"}
CASES = {
    "WeirProcessDown": Case({"up": "1x27 0x5"}, {"up": "1x27 0x0 1x5"}, {**PROCESS, "weir_role": "r"}),
    "WeirProcessRestarted": counted("weir_run_restarts_total"),
    "WeirLearnerStalled": Case(
        {f"{LEARNER}last_step_timestamp_seconds": "0+60x10 600x20", f"{LEARNER}step_seconds": "60x30"},
        {f"{LEARNER}last_step_timestamp_seconds": "0+60x10 600x20", f"{LEARNER}step_seconds": "600x30"},
    ),
    "WeirTrainingHeld": gauge(f"{LEARNER}held", 1, 0),
    "WeirCanaryRolledBack": counted(f"{CANARY}rollbacks_total"),
    "WeirCanaryHeld": Case(
        {f"{CANARY}step_seconds": "0+2000x30", f"{CANARY}max_hold_seconds": "86400x30", f"{CANARY}open": "1x30"},
        {f"{CANARY}step_seconds": "0+2000x30", f"{CANARY}max_hold_seconds": "86400x30", f"{CANARY}open": "0x30"},
    ),
    "WeirCanaryNoDecisions": Case(
        {f"{CANARY}last_look_timestamp_seconds": "0+60x15 900x15", f"{CANARY}interval_seconds": "60x30"}
        | {f"{CANARY}open": "1x30"},
        {f"{CANARY}last_look_timestamp_seconds": "0+60x15 900x15", f"{CANARY}interval_seconds": "60x30"}
        | {f"{CANARY}open": "0x30"},
    ),
    "WeirCanaryUnattended": Case(
        {"weir_gateway_canary_share": "0.05x30", f"{CANARY}open": "1x15 _x15"},
        {"weir_gateway_canary_share": "0.05x30", f"{CANARY}open": "1x30"},
    ),
    "WeirHoldUnread": counted(f"{LEARNER}hold_unread_total"),
    "WeirProcessWaits": gauge("weir_longest_wait_seconds", 400, 20)._replace(labels=PROCESS),
    "WeirNonFiniteSteps": counted(f"{LEARNER}skipped_steps_total"),
    "WeirKlHigh": gauge(f"{LEARNER}kl_nats", 1.5, 0.2),
    "WeirEntropyCollapsed": gauge(f"{LEARNER}entropy_nats", 0.001, 0.1),
    "WeirZeroVarianceGroups": Case(
        {f"{LEARNER}zero_variance_groups": "62x30", "weir_settings_groups_per_step": "64x30"},
        {f"{LEARNER}zero_variance_groups": "32x30", "weir_settings_groups_per_step": "64x30"},
    ),
    "WeirClipFractionHigh": gauge(f"{LEARNER}clip_fraction", 0.5, 0.1),
    "WeirEffectiveSampleLow": gauge(f"{LEARNER}effective_sample_share", 0.1, 0.9),
    "WeirSamplerMismatch": gauge(f"{LEARNER}mismatch_mean_nats", 0.1, 0.001),
    "WeirAnswersTruncated": gauge(f"{LEARNER}truncated_share", 0.6, 0.1),
    "WeirStaleGroupsDropped": Case(
        {
            f"{LEARNER}dropped_stale_groups_total": "0+4x30",
            f"{LEARNER}steps_total": "0+1x30",
            "weir_settings_groups_per_step": "8x30",
        },
        {
            f"{LEARNER}dropped_stale_groups_total": "0+1x30",
            f"{LEARNER}steps_total": "0+1x30",
            "weir_settings_groups_per_step": "8x30",
        },
    ),
    "WeirLearnerStarved": Case(
        {f"{LEARNER}wait_seconds_total": "0+55x30", f"{LEARNER}busy_seconds_total": "0+60x30"},
        {f"{LEARNER}wait_seconds_total": "0+30x30", f"{LEARNER}busy_seconds_total": "0+60x30"},
    ),
    "WeirRolloutIdle": Case(
        {"weir_rollout_idle_seconds_total": "0+55x30", "weir_rollout_seconds_total": "0+60x30"},
        {"weir_rollout_idle_seconds_total": "0+30x30", "weir_rollout_seconds_total": "0+60x30"},
    ),
    "WeirVerdictsFail": Case(
        {"weir_rollout_failed_verdicts_total": "0+10x30", "weir_rollout_verdicts_total": "0+100x30"},
        {"weir_rollout_failed_verdicts_total": "0+1x30", "weir_rollout_verdicts_total": "0+100x30"},
    ),
    "WeirReplicaNotServing": Case(
        {'weir_fleet_replica_state{state="dead"}': "1x30"},
        {'weir_fleet_replica_state{state="healthy"}': "1x30", 'weir_fleet_replica_state{state="dead"}': "_x15 1x5 _x9"},
        {"replica": "vm-0"},
    ),
    "WeirReplicasRestart": Case(
        {"weir_fleet_replica_restarts_total": "0x10 1x10 3x10"}, {"weir_fleet_replica_restarts_total": "0x20 1x9"}
    ),
    "WeirWeightRoundsFail": Case(
        {
            'weir_fleet_rounds_total{outcome="updated"}': "0+3x30",
            'weir_fleet_rounds_total{outcome="unfit"}': "0+1x30",
        },
        {
            'weir_fleet_rounds_total{outcome="updated"}': "0+9x30",
            'weir_fleet_rounds_total{outcome="unfit"}': "0+1x30",
        },
    ),
    "WeirReplicasPaused": Case(
        {"weir_fleet_pause_seconds_total": "0+20x30"}, {"weir_fleet_pause_seconds_total": "0+5x30"}
    ),
    "WeirVersionDamaged": counted("weir_fleet_versions_damaged_total"),
    "WeirQueueUnreadable": gauge("weir_queue_up", 0, 1),
    "WeirDeadLetters": gauge("weir_queue_dead_groups", 1, 0),
    "WeirCheckpointsLate": counted(f"{LEARNER}late_commits_total"),
    "WeirLoggerFails": counted("weir_logger_failures_total", **PROCESS),
}


def with_run(name: str) -> str:
    """The series as a scrape would label it."""
    labels = 'weir_run="demo",weir_process="p",weir_role="r",replica="vm-0"'
    if name == "up" or ("replica" not in name and "fleet" not in name):
        labels = labels.removesuffix(',replica="vm-0"')
    metric, brace, rest = name.partition("{")
    return f"{metric}{{{labels},{rest}" if brace else f"{metric}{{{labels}}}"


def judged(name: str, series: Series, labels: Mapping[str, str] | None) -> dict[str, object]:
    """promtool's test that the alert fires with these labels at the end of the series, or not at all."""
    found = [] if labels is None else [{"exp_labels": {"weir_run": "demo", **rule_labels(name), **labels}}]
    return {
        "interval": "1m",
        "name": name,
        "input_series": [{"series": with_run(key), "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": "30m", "alertname": name, "exp_alerts": found}],
    }


def rule_labels(name: str) -> dict[str, str]:
    return dict(ALERTS[name]["labels"])


def promtool(*arguments: str) -> tuple[int, str]:
    assert PROMTOOL is not None
    # It syncs a store of its own for each test, which on a busy disk takes ten seconds.
    place = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}
    done = subprocess.run([PROMTOOL, *arguments], env=os.environ | place, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def without_annotations(tmp_path: Path) -> Path:
    """The rules, less the texts that people read, which promtool would compare."""
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rules))
    return path


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    status, said = promtool("check", "rules", str(RULES))
    assert status == 0, said


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_not_on_a_healthy_run(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert case.wrong != case.healthy
    content = {
        "rule_files": [str(without_annotations(tmp_path))],
        "evaluation_interval": "1m",
        "tests": [judged(name, case.wrong, case.labels), judged(name, case.healthy, None)],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(content))
    status, said = promtool("test", "rules", str(path))
    assert status == 0, said


@needs_promtool
def test_a_learner_that_is_held_does_not_stall(tmp_path: Path) -> None:
    name = "WeirLearnerStalled"
    stalled = CASES[name].wrong
    tests = [
        judged(name, stalled | {f"{LEARNER}held": "1x30"}, None),
        judged(name, stalled | {f"{LEARNER}held": "0x30"}, {}),
    ]
    content = {"rule_files": [str(without_annotations(tmp_path))], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.yml").write_text(json.dumps(content))
    status, said = promtool("test", "rules", str(tmp_path / "test.yml"))
    assert status == 0, said


def test_every_alert_is_tested_and_told_in_the_runbook() -> None:
    assert CASES.keys() == ALERTS.keys()
    runbook = (REPOSITORY / "docs" / "runbook.md").read_text()
    assert re.findall(r"^## (.*)$", runbook, re.MULTILINE) == list(ALERTS)
    for entry in re.split(r"^## .*$", runbook, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^- \*\*(.*):\*\*", entry, re.MULTILINE) == ["Means", "Look at", "Do"], entry
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]

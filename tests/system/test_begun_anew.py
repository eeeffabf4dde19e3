"""A real learner whose candidate was rolled back goes on from the last good version, by the operator's commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.registry import Registry
from serving_bridge.telemetry.metrics_log import read_metrics
from serving_bridge.weights.store import WeightStore
from tests.support.learner_process import LearnerLife, demo_run
from tools import canary, registry

POLICY = """
[canary]
interval_s = 0.05
holdout = 0.5
metrics = [{ name = "error", margin = 0.2 }]
steps = [{ share = 1.0, min_samples = 20, min_time_s = 0, proof = "all" }]
"""


def _rolled_back(folder: Path, place: Path) -> None:
    """Entry 2 is rolled back for its errors."""
    (folder / "policy.toml").write_text(POLICY)
    canary.main(["start", str(place), "2", "--policy", str(folder / "policy.toml"), "--reason", "x"])
    index = Registry(place)
    versions = [index.index.standing("default", number).entry.weight_version for number in (1, 2)]
    index.close()
    rows = [
        {"kind": "answer", "arm": arm, "version": versions[arm == "canary"], "tenant": "a", "conversation": f"{arm}{n}"}
        | {"measures": {"error": float(arm == "canary")}}
        for n in range(200)
        for arm in ("stable", "canary")
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    canary.main(["observe", str(place), "--file", str(folder / "rows.jsonl")])
    canary.main(["run", str(place), "--once"])


@pytest.mark.soak
def test_a_run_begins_anew_with_the_last_good_version(tmp_path: Path) -> None:
    run, place = tmp_path / "run", tmp_path / "registry"
    run.mkdir()
    settings = (f"registry.path={place}", "learner.steps=400", "learner.checkpoint.every=100")
    paths, command = demo_run(run, *settings, num_groups=800)

    def events(name: str) -> list[dict[str, Any]]:
        found = read_metrics(paths.metrics) if paths.metrics.exists() else []
        return [record for record in found if record["event"] == name]

    def life(until: Callable[[], bool], what: str) -> None:
        with LearnerLife(command, tmp_path / "errors") as one:
            one.reaches(until, what)
            one.stops()

    place.mkdir()
    for number in (1, 2):
        before = len(events("step"))
        life(lambda before=before: len(events("step")) > before + 2, "steps")
        registry.main(["add", str(place), "--run", str(run)])
        registry.main(["stage", str(place), str(number), "passed", "--reason", "x", "--unproven"])
        if number == 1:
            registry.main(["move", str(place), "stable=1", "--reason", "first"])
    _rolled_back(tmp_path, place)
    with LearnerLife(command, tmp_path / "errors") as held:
        held.reaches(lambda: bool(events("hold")), "a hold")
        made = len(events("step"))
        canary.main(["release", str(place), "--anew"])
        held.reaches(lambda: len(events("step")) > made + 2, "steps of the run that began anew")
        held.stops()
    (anew,) = events("anew")
    assert anew["step"] == made
    index = Registry(place)
    good = index.index.standing("default", 1).entry.content
    index.close()
    version = next(record["version"] for record in events("published") if record["t"] > anew["t"])
    store = WeightStore(paths.weights, "demo")
    assert store.manifest(version).content_sha256 == good, "bit by bit what users get"
    assert store.manifest(version).step == made, "steps and versions only go up"
    life(lambda: len(events("step")) > made + 8, "steps of the life after it")
    assert len(events("anew")) == 1, "a life that resumes after it does not begin anew again"

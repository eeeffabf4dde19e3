"""The real learner while a registry's note holds training: it waits, ends in order, and goes on once released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_bridge.canary import TrainingNote, write_note
from serving_bridge.telemetry.metrics_log import read_metrics
from serving_bridge.weights.store import WeightStore
from tests.support.learner_process import LearnerLife, demo_run


def note(*, hold: bool) -> TrainingNote:
    return TrainingNote(hold, "error is worse", 3, 7, "demo", 9, 5, "demo", 4)


@pytest.mark.soak
def test_a_learner_is_held_stopped_released_and_held_again(tmp_path: Path) -> None:
    run, registry = tmp_path / "run", tmp_path / "registry"
    run.mkdir()
    registry.mkdir()
    settings = (f"registry.path={registry}", "learner.steps=400", "learner.checkpoint.every=100")
    paths, command = demo_run(run, *settings, num_groups=800)

    def events(name: str) -> list[dict[str, Any]]:
        found = read_metrics(paths.metrics) if paths.metrics.exists() else []
        return [record for record in found if record["event"] == name]

    write_note(registry, "default", note(hold=True))
    with LearnerLife(command, tmp_path / "errors") as first:
        first.reaches(lambda: bool(events("hold")) and bool(events("committed")), "a hold with its save")
        first.stops()
    assert [record["reason"] for record in events("ended")] == ["stopped"]
    assert events("step") == []
    with LearnerLife(command, tmp_path / "errors") as second:
        second.reaches(lambda: len(events("hold")) == 3, "a hold in the next life")
        write_note(registry, "default", note(hold=False))
        second.reaches(lambda: len(events("step")) > 2, "steps")
        write_note(registry, "default", note(hold=True))
        second.reaches(lambda: len(events("hold")) == 5, "another hold")
        made, versions = len(events("step")), WeightStore(paths.weights, "demo").versions()
        second.reaches(lambda: events("committed")[-1]["step"] == made, "its checkpoint")
        (registry / "training" / "default.json").write_text('{"hold"')
        second.reaches(lambda: bool(events("hold_unread")), "word of a torn note")
        assert len(events("step")) == made
        assert len(WeightStore(paths.weights, "demo").versions()) <= len(versions) + 1, "what was being stored"
        second.stops()
    assert [record["held"] for record in events("hold")] == [True, False, True, False, True, False]

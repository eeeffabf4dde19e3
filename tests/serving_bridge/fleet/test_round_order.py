"""The order of a weight round's steps, and its verdict: nothing is named or resumed before its proof passed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts.weights import GoldenPrompt
from serving_bridge.fleet import weight_round
from serving_bridge.fleet.weight_round import RoundOutcome, run_round
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.recording_client import RecordingClient
from tests.support.virtual_time import run

#: exact in float32, so that a difference can be exactly this
TOLERANCE = 0.125
GOLDEN = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -2.0])]
SERVING = ServingSettings(max_model_len=8, probe_tolerance=TOLERANCE)


def round_on(client: RecordingClient, folder: Path) -> RoundOutcome:
    writer = VersionWriter(WeightStore(folder / "weights", "run"))
    for _ in range(2):
        manifest = writer.publish({"a": np.ones(3, np.float32)}.items(), step=0, golden=GOLDEN)
    typed: Any = client
    return run(run_round(typed, manifest, SERVING))


def test_weights_are_named_once_they_are_proven_and_sampled_from_once_they_are_named(tmp_path: Path):
    client = RecordingClient({2: [-1.0], 3: [-1.0, -2.0]})
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.probe_max_abs) == ("updated", 0.0)
    before = ["stage", "start update", "pause", "update", "finish update", "probe", "probe"]
    assert client.asked == [*before, "name 2", "resume", "release"]


def test_a_version_that_is_applied_already_loses_its_name_until_it_is_proven(tmp_path: Path):
    client = RecordingClient({2: [-1.0], 3: [-1.0, -2.0]}, is_applied=True)
    assert round_on(client, tmp_path).status == "updated"
    assert client.asked == ["stage", "pause", "name None", "probe", "probe", "name 2", "resume", "release"]


def test_weights_are_not_named_once_the_lease_may_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another round may have begun: it must find the weights unproven."""
    monkeypatch.setattr(weight_round, "_lease_s", lambda settings: 2.0)
    client = RecordingClient({2: [-1.0], 3: [-1.0, -2.0]}, probe_s=3.0)
    outcome = round_on(client, tmp_path)
    assert (outcome.status, client.is_held, client.named) == ("unfit", True, -1)
    assert client.asked[-5:] == ["probe", "probe", "stage", "abort", "release"]
    assert "the lease of 2.0 s ended before it was renewed" in (outcome.error or "")


@pytest.mark.parametrize(
    ("second", "is_proven"),
    [
        (-2.0 - TOLERANCE, True),
        (-2.0 + TOLERANCE, True),
        (-2.0 - 1.01 * TOLERANCE, False),
        (-2.0 + 1.01 * TOLERANCE, False),
        (math.nan, False),
        (-math.inf, False),
    ],
)
def test_the_verdict_is_that_of_the_largest_difference_and_nan_is_none(tmp_path: Path, second: float, is_proven: bool):
    client = RecordingClient({2: [-1.0], 3: [-1.0, second]})
    outcome = round_on(client, tmp_path)
    if is_proven:
        assert (outcome.status, client.is_held, client.named) == ("updated", False, 2)
        return
    assert (outcome.status, client.is_held, client.named) == ("unfit", True, -1)
    assert client.asked[-3:] == ["probe", "abort", "release"]
    assert "(serving.probe_tolerance)" in (outcome.error or "")

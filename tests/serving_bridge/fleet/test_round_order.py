"""The order of a weight round's steps, and its verdict: nothing is named or resumed before its proof passed."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts.weights import GoldenPrompt
from serving_bridge.fleet import weight_round
from serving_bridge.fleet.weight_round import RoundOutcome, run_round
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm import Failed, Swapped, WorkerStatus
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.recording_client import RecordingClient
from tests.support.virtual_time import run

#: exact in float32, so that a difference can be exactly this
TOLERANCE = 0.125
GOLDEN = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -2.0])]
SERVING = ServingSettings(max_model_len=8, probe_tolerance=TOLERANCE)


def round_on(client: RecordingClient, folder: Path, *, golden: Sequence[GoldenPrompt] = tuple(GOLDEN)) -> RoundOutcome:
    writer = VersionWriter(WeightStore(folder / "weights", "run"))
    for _ in range(2):
        manifest = writer.publish({"a": np.ones(3, np.float32)}.items(), step=0, golden=golden)
    typed: Any = client
    return run(run_round(typed, manifest, SERVING))


def test_weights_are_named_once_they_are_proven_and_sampled_from_once_they_are_named(tmp_path: Path):
    client = RecordingClient({2: [-1.0], 3: [-1.0, -2.0]})
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.probe_max_abs) == ("updated", 0.0)
    assert client.asked == ["stage", "start update", "swap", "serve 2", "release"]


def test_a_version_that_is_applied_already_loses_its_name_until_it_is_proven(tmp_path: Path):
    client = RecordingClient({2: [-1.0], 3: [-1.0, -2.0]}, is_applied=True)
    assert round_on(client, tmp_path).status == "updated"
    assert client.asked == ["stage", "prove", "serve 2", "release"]


def test_weights_are_not_named_once_the_lease_may_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another round may have begun: it must find the weights unproven."""
    monkeypatch.setattr(weight_round, "_lease_s", lambda settings: 2.0)
    client = RecordingClient({2: [-1.0], 3: [-1.0, -2.0]}, probe_s=3.0)
    outcome = round_on(client, tmp_path)
    assert (outcome.status, client.is_held, client.named) == ("unfit", True, -1)
    assert client.asked[-4:] == ["swap", "stage", "abort", "release"]
    assert "the lease of 2.0 s ended before it was renewed" in (outcome.error or "")


SOUND = {2: [-1.0], 3: [-1.0, -2.0]}


class Failing(RecordingClient):
    """Fails what it is asked for as often as `fails` says.

    Args:
      updated: what workers say after an update began.
      swapped: how a swap ends that failed halfway.
    """

    def __init__(
        self,
        fails: dict[str, int] | None = None,
        *,
        updated: dict[str, Any] | None = None,
        swapped: Swapped | None = None,
        **options: Any,
    ) -> None:
        super().__init__(SOUND, **options)
        self.fails, self.updated, self.swapped = dict(fails or {}), updated or {}, swapped
        self.says: dict[str, Any] = {}

    def _may_fail(self, what: str) -> None:
        if self.fails.get(what, 0):
            self.fails[what] -= 1
            self.asked.append(f"{what} fails")
            raise Failed(f"{what} on purpose")

    async def stage(self, *arguments: Any, sealed: str = "") -> WorkerStatus:
        self._may_fail("stage")
        return replace(await super().stage(*arguments), **self.says)

    async def worker_status(self, round_id: str = "") -> WorkerStatus:
        self.says = {name: value for name, value in self.says.items() if name != "state"}
        return replace(await super().worker_status(round_id), **self.says)

    async def start_update(self) -> None:
        self._may_fail("start update")
        await super().start_update()

    async def end_stuck_update(self) -> None:
        self.asked.append("end update")

    async def swap(self, *arguments: Any, **options: Any) -> Swapped:
        self._may_fail("swap")
        if self.swapped is None:
            return await super().swap(*arguments, **options)
        self.asked.append("swap fails")
        self.is_held, self.says = True, self.says | self.updated
        return self.swapped

    async def serve(self, version: int) -> None:
        self._may_fail("serve")
        await super().serve(version)


@pytest.mark.parametrize(("failures", "status"), [(2, "updated"), (3, "unfit")])
def test_the_end_of_a_pause_is_tried_three_times(tmp_path: Path, failures: int, status: str):
    client = Failing({"serve": failures})
    outcome = round_on(client, tmp_path)
    assert (outcome.status, client.is_held) == (status, status == "unfit")
    assert client.asked.count("serve fails") == failures
    still_paused = "the weights are proven, but the engine is still paused: serve on purpose"
    assert outcome.error == (None if status == "updated" else still_paused)


def test_an_update_that_fails_and_touched_nothing_leaves_the_old_weights_serving(tmp_path: Path):
    client = Failing(swapped=Swapped(False, "on purpose", [], 0.0))
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.error, client.is_held, client.named) == ("rejected", "on purpose", False, 1)
    assert client.asked == ["stage", "start update", "swap fails", "resume", "release"]


def test_a_pause_that_fails_leaves_the_old_weights_serving(tmp_path: Path):
    client = Failing({"swap": 1})
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.error, client.is_held, client.named) == ("rejected", "swap on purpose", False, 1)
    assert client.asked == ["stage", "start update", "swap fails", "resume", "release"]


@pytest.mark.parametrize("applied", [True, False])
def test_weights_without_a_proof_are_not_served(tmp_path: Path, applied: bool):
    """The proof fails; or, of a version that was applied before, the name can't be taken away."""
    client = Failing(swapped=Swapped(applied, "on purpose", [], 0.0), is_applied=not applied)
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.error, client.is_held) == ("unfit", "on purpose", True)
    assert client.asked[-3:] == ["swap fails", "abort", "release"]


@pytest.mark.parametrize("updated", [{"intact": False}, {"applied": 2}, {"intact": False, "applied": 2}])
def test_an_update_that_fails_halfway_or_after_its_end_is_not_served(tmp_path: Path, updated: dict[str, Any]):
    client = Failing(swapped=Swapped(False, "on purpose", [], 0.0), updated=updated)
    assert (round_on(client, tmp_path).status, client.is_held) == ("unfit", True)
    assert client.asked[-3:] == ["swap fails", "abort", "release"]


def test_a_session_that_was_left_open_is_ended_once(tmp_path: Path):
    client = Failing({"start update": 1})
    assert round_on(client, tmp_path).status == "updated"
    assert client.asked[:5] == ["stage", "start update fails", "end update", "start update", "swap"]
    client = Failing({"start update": 2})
    outcome = round_on(client, tmp_path / "again")
    assert (outcome.status, outcome.num_running, outcome.error) == ("rejected", None, "start update on purpose")
    assert client.asked == ["stage", "start update fails", "end update", "start update fails", "release"]


@pytest.mark.parametrize(
    ("says", "said", "store_damaged"),
    [
        ({"state": "failed", "error": "no file", "damaged": True}, "no file", True),
        ({"state": "failed", "error": "no room"}, "no room", False),
        ({"state": "idle"}, "version 2 is not staged on every worker", False),
        ({"staged": 1}, "version 2 is not staged on every worker", False),
        ({"staged": None}, "version 2 is not staged on every worker", False),
    ],
)
def test_what_is_not_staged_is_rejected_before_any_pause(
    tmp_path: Path, says: dict[str, Any], said: str, store_damaged: bool
):
    client = Failing()
    client.says = says
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.store_damaged) == ("rejected", store_damaged)
    assert said in (outcome.error or "")
    assert client.asked == ["stage", "release"]


def test_a_version_that_is_still_read_is_waited_for(tmp_path: Path):
    client = Failing()
    client.says = {"state": "reading"}
    outcome = round_on(client, tmp_path)
    assert outcome.status == "updated"
    assert 0 < outcome.stage_s < 1


def test_a_replica_that_another_round_holds_is_left_alone(tmp_path: Path):
    client = Failing({"stage": 1})
    outcome = round_on(client, tmp_path)
    assert (outcome.status, outcome.error) == ("rejected", "stage on purpose")
    assert client.asked == ["stage fails", "release"]


@pytest.mark.parametrize(("named", "status", "end"), [(1, "rejected", "resume"), (-1, "unfit", "abort")])
def test_a_pause_that_was_found_ends_where_the_weights_have_the_name_of_what_is_applied(
    tmp_path: Path, named: int, status: str, end: str
):
    client = Failing()
    client.is_held, client.named, client.says = True, named, {"state": "failed", "error": "no file"}
    assert round_on(client, tmp_path).status == status
    assert client.asked == ["stage", end, "release"]
    assert client.is_held is (end == "abort")


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
    assert client.asked[-3:] == ["swap", "abort", "release"]
    assert "(serving.probe_tolerance)" in (outcome.error or "")


def test_a_version_that_nothing_can_prove_is_refused_before_anything_is_asked(tmp_path: Path):
    client = RecordingClient(SOUND)
    outcome = round_on(client, tmp_path, golden=[])
    assert (outcome.status, client.asked) == ("rejected", [])
    assert "has no golden prompts" in (outcome.error or "")


def test_what_must_not_be_cut_off_ends_before_the_cancellation_and_its_error_is_taken_note_of():
    """Nothing is left that the loop would complain of."""
    ended: list[str] = []
    complaints: list[dict[str, Any]] = []

    async def fails() -> None:
        await asyncio.sleep(1)
        ended.append("work")
        raise Failed("on purpose")

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        settling = asyncio.create_task(weight_round._settled(fails()))
        for _ in range(2):
            await asyncio.sleep(0.1)
            settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        ended.append("cancelled")
        del settling
        gc.collect()

    run(story())
    assert ended == ["work", "cancelled"]
    assert complaints == []

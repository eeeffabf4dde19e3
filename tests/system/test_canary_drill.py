"""The canary's drill: two real vLLM replicas under load, `tools.canary run` as a process that is killed where it can
be; a good version reaches all users, one with noise in its weights goes back, and no request fails."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from serving_bridge.canary import read_note
from tests.support.canary_drill import FALLBACK, CanaryPlace, Scorer, noised
from tests.support.canary_world import NAMESPACE
from tests.support.users_fleet import START_S, Drill, Load

pytestmark = pytest.mark.soak

POLICY = """
[canary]
interval_s = 1.0
alpha = 0.05
beta = 0.05
max_hold_s = 900
holdout = 0.4
balance = 0.4
metrics = [
  { name = "error", margin = 0.15, per_tenant = false },
  { name = "length", margin = 0.3, per_tenant = false },
  { name = "score.pairs", role = "goal", margin = 0.05, low = 0.0, high = 1.0, coverage = 0.2, per_tenant = false },
]
steps = [
  { share = 0.2, min_samples = 20, min_time_s = 5 },
  { share = 0.4, min_samples = 40, min_time_s = 5, proof = "goals" },
  { share = 1.0, min_samples = 40, min_time_s = 5, proof = "all" },
]
"""
GOOD, BAD = 0.001, 2.0


def _kill_replica(serving: int, version: int, drill: Drill) -> str:
    """kill -9 for the server of a replica that serves this version still: a process that this test's fleet started."""
    row = next(row for row in drill.rows.ready() if row.version == version)
    port = row.url.rsplit(":", 1)[1].strip("/")
    for process in psutil.Process(serving).children(recursive=True):
        if port in process.cmdline():
            process.kill()
            return row.name
    raise AssertionError(f"no process of the fleet listens at {row.url}")


async def _promoted(place: CanaryPlace, load: Load, serving: int) -> dict[str, float]:
    """The good version reaches all users, past a kill of the controller at each of its crash points."""
    began_s = time.monotonic()
    await place.until(lambda: len(load.heard) >= 20)
    given = ("2", "--policy", str(place.drill.folder / "policy.toml"), "--reason", "the drill's good one")
    await asyncio.to_thread(place.tool, "start", *given, crash_at="canary.started")
    assert place.disagreement() == ""
    await place.killed("canary.seen:2", "--take-over")
    await place.killed("canary.decided:2", "--take-over")
    await place.killed("canary.obeyed", "--take-over", after=lambda: place.tool("pause"))
    assert place.world.rollouts.latest(NAMESPACE)[0].phase == "paused"
    await asyncio.to_thread(place.tool, "resume")
    last = asyncio.ensure_future(place.killed("canary.noted"))  # waits for the lease of the one that was killed
    await place.until(lambda: place.world.agreement()[2] == 2 or last.done())
    took = {"promoted": time.monotonic() - began_s}
    killed_s = time.monotonic()
    _kill_replica(serving, 1, place.drill)
    await last
    await load.until(lambda recent: all(one.versions == {2} for one in recent))
    took["all answers are the new version's"] = time.monotonic() - killed_s
    took["two replicas again"] = await place.drill.until_served(2, 2, limit_s=START_S)
    return took


async def _rolled_back(place: CanaryPlace, load: Load) -> dict[str, float]:
    """The noised version goes back by its scores."""
    began_s = time.monotonic()
    given = ("3", "--policy", str(place.drill.folder / "policy.toml"), "--reason", "the drill's bad one")
    await asyncio.to_thread(place.tool, "start", *given)
    await place.killed("canary.seen", "--take-over")
    await place.killed("canary.noted:2", "--take-over")  # the first note is that the rollout is under way
    assert place.world.rollouts.latest(NAMESPACE)[0].phase == "rolled_back"
    took = {"rolled back": time.monotonic() - began_s}
    took["no more answers of it"] = await load.until(lambda recent: all(one.versions == {2} for one in recent))
    await place.drill.until_served(2, 2)
    return took


def _judge(place: CanaryPlace, load: Load, took: Mapping[str, float]) -> None:
    of_bad = sum(3 in one.versions for one in load.heard)
    print({name: f"{value:.1f} s" for name, value in took.items()})
    print(f"{load.asked} asked, {len(load.heard)} answers, {of_bad} of the bad version; lives {place.lives}")
    bad, good = place.world.rollouts.latest(NAMESPACE, limit=2)
    print(good.phase, good.looks, good.reason, bad.phase, bad.looks, bad.reason, sep=" | ")
    assert load.errors == []
    assert len(load.heard) > 100
    assert place.drill.most_versions == 2
    assert (good.phase, bad.phase) == ("promoted", "rolled_back")
    assert "score.pairs is worse" in bad.reason
    assert place.disagreement() == ""
    for rollout in (good, bad):
        assert "come out as they were stored" in place.tool("replay", str(rollout.rollout))
    note = read_note(place.root, NAMESPACE)
    assert note is not None
    assert (note.hold, note.good_entry) == (True, 2)
    assert json.loads(place.tool("status", "--json"))["phase"] == "rolled_back"


def test_a_good_version_is_promoted_and_a_bad_one_goes_back_past_every_kill(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    models = [noised(tmp_path / f"model{number}", noise) for number, noise in enumerate((0.0, GOOD, BAD))]
    drill = Drill(tmp_path, models, FALLBACK)
    drill.move("first", stable=1)
    place = CanaryPlace(drill, POLICY)

    async def play() -> None:
        async with drill.serving(1, 1) as (serving, url):
            scorer = Scorer(place.world)
            load = Load(url, told=scorer.told)
            writing = asyncio.ensure_future(scorer.write())
            async with drill.asking(load):
                try:
                    took = await _promoted(place, load, serving.pid)
                    took |= await _rolled_back(place, load)
                finally:
                    writing.cancel()
            _judge(place, load, took)

    try:
        asyncio.run(play())
    finally:
        place.world.close()
        drill.registry.close()

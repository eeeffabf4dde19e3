"""The canary's drill: two real vLLM replicas under load, `tools.canary run` as a process that is killed where it can
be; a good version reaches all users, one with noise in its weights goes back, and no request fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving_bridge.canary import Observation, read_note
from tests.conftest import REPOSITORY
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tests.support.letters import letter_model
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
#: An answer that is lost with its replica is asked for once more.
FALLBACK = '[fallback]\nunavailable = ["retry"]\nretry_wait_s = 0.2\n'
GOOD, BAD = 0.001, 2.0
LIMIT_S = 400.0


def noised(folder: Path, noise: float) -> Path:
    """The model of seed 0, with normal noise of this standard deviation on every weight."""
    import torch

    model = letter_model(folder, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += noise * torch.randn(weights.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


class Scorer:
    """Scores users' answers from beside the gateway: the share of different pairs of neighbouring letters."""

    def __init__(self, world: CanaryWorld) -> None:
        self._world, self._waiting = world, list[Observation]()

    def told(self, answer: Mapping[str, Any]) -> None:
        text, weir = answer["choices"][0]["message"]["content"] or "", answer["weir"]
        pairs, versions = list(pairwise(text)), {span["version"] for span in weir["policy_versions"][0]}
        if not pairs or len(versions) != 1 or weir["arm"] not in ("canary", "stable"):
            return
        measures = {"score.pairs": len(set(pairs)) / len(pairs)}
        self._waiting.append(
            Observation(
                NAMESPACE, "score", weir["arm"], versions.pop(), "drill", answer["id"], measures, at_s=time.time()
            )
        )

    async def write(self) -> None:
        """Writes what came, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(0.3)
            batch, self._waiting = self._waiting, []
            self._world.log.add(batch)


class Place:
    """The registry under the drill, and the canary's commands on it."""

    def __init__(self, drill: Drill) -> None:
        self.drill, self.root = drill, drill.folder / "registry"
        self.world = CanaryWorld.of(self.root)
        self.lives: list[str] = []
        (drill.folder / "policy.toml").write_text(POLICY)

    async def controller(self, crash_at: str = "", *more: str) -> asyncio.subprocess.Process:
        self.lives.append(crash_at or "none")
        with (self.drill.folder / f"controller{len(self.lives)}.out").open("wb") as to:
            return await asyncio.create_subprocess_exec(
                *_command("run", self.root, *more),
                stdout=to, stderr=asyncio.subprocess.STDOUT, cwd=REPOSITORY, env=_environment(crash_at),
            )  # fmt: skip

    async def killed(self, crash_at: str, *more: str, after: Callable[[], Any] = lambda: None) -> None:
        """A controller that kills itself there; then alias, split, stage and rollout say the same."""
        process = await self.controller(crash_at, *more)
        try:
            if more:
                await asyncio.sleep(4.0)
            await asyncio.to_thread(after)
            assert await asyncio.wait_for(process.wait(), LIMIT_S) == -signal.SIGKILL, crash_at
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert self.disagreement() == "", crash_at

    def tool(self, command: str, *more: str, crash_at: str = "") -> str:
        ended = subprocess.run(
            _command(command, self.root, *more), capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
            env=_environment(crash_at), check=False,
        )  # fmt: skip
        assert ended.returncode == (-signal.SIGKILL if crash_at else 0), ended.stderr
        return ended.stdout

    def disagreement(self) -> str:
        """What of alias, split, stage and rollout does not say the same; "" for nothing."""
        phase, canary, stable, share, shadow = self.world.agreement()
        rollout = self.world.rollouts.latest(NAMESPACE)[0]
        step, number = rollout.policy.steps[rollout.state.step], rollout.number
        if rollout.is_open:
            expected = (number, rollout.stable, rollout.policy.share_of(step), 0.0, "canary")
        else:
            promoted = phase == "promoted"
            expected = (None, number if promoted else rollout.stable, 0.0, 0.0, "stable" if promoted else "rolled_back")
        found = (canary, stable, share, shadow, self.world.stage(number))
        return "" if found == expected else f"{phase}: {found}, expected {expected}"

    async def until(self, what: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
        began_s = time.monotonic()
        while not what():
            assert time.monotonic() - began_s < limit_s, self.tool("status")
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s


def _command(command: str, root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tools.canary", command, str(root), *more]


def _environment(crash_at: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "WEIR_CRASH_AT")}
    return kept | ({"WEIR_CRASH_AT": crash_at} if crash_at else {})


def _kill_replica(serving: int, version: int, drill: Drill) -> str:
    """kill -9 for the server of a replica that serves this version still: a process that this test's fleet started."""
    row = next(row for row in drill.rows.ready() if row.version == version)
    port = row.url.rsplit(":", 1)[1].strip("/")
    for process in psutil.Process(serving).children(recursive=True):
        if port in process.cmdline():
            process.kill()
            return row.name
    raise AssertionError(f"no process of the fleet listens at {row.url}")


async def _promoted(place: Place, load: Load, serving: int) -> dict[str, float]:
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


async def _rolled_back(place: Place, load: Load) -> dict[str, float]:
    """The noised version goes back by its scores."""
    began_s = time.monotonic()
    given = ("3", "--policy", str(place.drill.folder / "policy.toml"), "--reason", "the drill's bad one")
    await asyncio.to_thread(place.tool, "start", *given)
    await place.killed("canary.seen", "--take-over")
    await place.killed("canary.noted", "--take-over")
    took = {"rolled back": time.monotonic() - began_s}
    took["no more answers of it"] = await load.until(lambda recent: all(one.versions == {2} for one in recent))
    await place.drill.until_served(2, 2)
    return took


def _judge(place: Place, load: Load, took: Mapping[str, float]) -> None:
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
    place = Place(drill)

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

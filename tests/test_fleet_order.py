"""Which replica gets which version when: the fleet controller, over replicas whose rounds end as the test says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import GoldenPrompt, WeightManifest
from serving_bridge.config import ServingSettings
from serving_bridge.fleet import Fleet, _Member
from serving_bridge.registry import ReplicaRegistry
from serving_bridge.weight_files import Tensor
from serving_bridge.weight_round import RoundOutcome
from serving_bridge.weight_store import WeightStore

TENSORS = {"a": np.ones(3, np.float32)}


class Obedient:
    """A replica whose rounds end when and as the test says."""

    def __init__(self, name: str) -> None:
        self.name, self.base_url, self.state = name, f"http://{name}", "stale"
        self.asked: list[int] = []
        self.outcome: asyncio.Future[dict[str, Any]] | None = None
        self.kills = 0

    def exit_status(self) -> int | None:
        return None

    async def update(self, store: WeightStore, manifest: WeightManifest) -> RoundOutcome:
        self.asked.append(manifest.version)
        self.outcome = asyncio.get_running_loop().create_future()
        return RoundOutcome(version=manifest.version, **await self.outcome)

    async def kill(self) -> None:
        self.kills += 1


class Controller:
    """A fleet over obedient replicas, moved on by hand."""

    def __init__(self, folder: Path, *, replicas: int, **settings: Any) -> None:
        self.store = WeightStore(folder / "weights", "run")
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.fleet = Fleet(
            ServingSettings(max_model_len=8, replicas=replicas, **settings),
            model_dir=folder,
            store=self.store,
            registry=ReplicaRegistry(folder / "replicas"),
            log_dir=folder,
            keep_versions=8,
            log=lambda event, **fields: self.events.append((event, fields)),
            should_stop=lambda: False,
        )
        self.replicas = [Obedient(f"r{index}") for index in range(replicas)]
        self.members = [_Member(replica) for replica in self.replicas]  # type: ignore[arg-type]

    def publish(self) -> WeightManifest:
        return self.store.publish(TENSORS.items(), step=0, golden=[GoldenPrompt([1, 2], [-1.0])])

    async def tick(self) -> None:
        self.fleet._follow_store(self.members)
        for member in self.members:
            self.fleet._tend(member, self.members)
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self, replica: int, status: str = "updated", **fields: Any) -> None:
        outcome = self.replicas[replica].outcome
        assert outcome is not None
        outcome.set_result({"status": status, **fields})
        for _ in range(5):
            await asyncio.sleep(0)
        await self.tick()


@pytest.mark.parametrize(("at_once", "first", "second"), [(1, [[1], []], [[1], [1]]), (0, [[1], [1]], [[1], [1]])])
def test_replicas_are_updated_one_by_one_or_all_at_once(
    tmp_path: Path, at_once: int, first: list[list[int]], second: list[list[int]]
):
    async def story() -> None:
        fleet = Controller(tmp_path, replicas=2, updates_at_once=at_once)
        fleet.publish()
        await fleet.tick()
        assert [replica.asked for replica in fleet.replicas] == first
        await fleet.end(0)
        assert [replica.asked for replica in fleet.replicas] == second
        await fleet.end(1)
        assert [member.version for member in fleet.members] == [1, 1]

    asyncio.run(story())


def test_a_serving_replica_waits_until_a_damaged_version_is_there_whole(tmp_path: Path):
    async def story() -> None:
        fleet = Controller(tmp_path, replicas=1)
        fleet.publish()
        await fleet.tick()
        await fleet.end(0)
        newest = fleet.publish()
        await fleet.tick()
        await fleet.end(0, "rejected", error="bad sha256", store_damaged=True)
        await fleet.tick()
        assert fleet.replicas[0].asked == [1, 2]  # serves version 1 meanwhile, and is not bothered again
        assert fleet.members[0].version == 1
        assert fleet.store.wanted_anchors() == [2]
        assert ("version_damaged", {"version": 2, "error": "bad sha256"}) in fleet.events
        fleet.store.add_anchor(newest, {name: Tensor.of(array) for name, array in TENSORS.items()})
        await fleet.tick()
        assert fleet.replicas[0].asked == [1, 2, 2]

    asyncio.run(story())


def test_a_replica_that_serves_nothing_takes_the_newest_version_that_it_can(tmp_path: Path):
    async def story() -> None:
        fleet = Controller(tmp_path, replicas=1)
        for _ in range(3):
            fleet.publish()
        await fleet.tick()
        for version in (3, 2):
            assert fleet.replicas[0].asked[-1] == version
            await fleet.end(0, "rejected", error="bad sha256", store_damaged=True)
        assert fleet.replicas[0].asked == [3, 2, 1]
        await fleet.end(0)
        assert fleet.members[0].version == 1
        assert fleet.replicas[0].asked == [3, 2, 1]
        newer = fleet.publish()
        await fleet.tick()
        assert fleet.replicas[0].asked[-1] == newer.version == 4

    asyncio.run(story())


def test_after_three_failed_rounds_a_replica_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serving_bridge.fleet._FIRST_RETRY_S", 0.0)

    async def story() -> None:
        fleet = Controller(tmp_path, replicas=1)
        fleet.publish()
        await fleet.tick()
        for failed in range(3):
            assert (fleet.replicas[0].asked, fleet.replicas[0].kills) == ([1] * (failed + 1), 0)
            await fleet.end(0, "unfit", error="wrong log-probs")
        assert fleet.replicas[0].kills == 1
        assert fleet.members[0].version == -1

    asyncio.run(story())

"""The fleet's rows in the registry, and the versions that nobody may delete."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from serving_bridge.fleet.roster import Roster
from serving_bridge.routing.registry import ReplicaRegistry
from tests.support.stub_fleet import StubFleet
from tests.support.virtual_time import inline, run


def test_versions_in_use_are_those_of_the_members_and_of_all_rows(tmp_path: Path):
    registry = ReplicaRegistry(tmp_path)
    registry.report("other-0", url="http://x", state="healthy", version=2, step=0, fleet="other")
    roster = Roster(registry, "host", run_blocking=inline, log=lambda *_, **__: None)
    unreported: Any = SimpleNamespace(version=7)
    assert roster.versions_in_use([unreported]) == {2, 7}


def test_a_version_that_another_fleet_serves_is_kept_in_the_store(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path).running() as fleet:
            fleet.registry.report("other-0", url="http://x", state="healthy", version=2, step=0, fleet="other")
            for _ in range(12):
                fleet.publish()
            await fleet.until(lambda: [member.version for member in fleet.members] == [12], 30)
            assert fleet.store.versions() == [2, *range(5, 13)]

    run(story())

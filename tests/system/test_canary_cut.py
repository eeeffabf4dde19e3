"""The canary's drill on PostgreSQL: copies of requests, then the database is cut off in mid-promotion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.canary_drill import FALLBACK, LIMIT_S, CanaryPlace, noised
from tests.support.canary_world import NAMESPACE
from tests.support.postgres_proxy import Gate
from tests.support.queue_engines import fresh_url
from tests.support.users_fleet import Drill, Load

pytestmark = [pytest.mark.soak, pytest.mark.postgres]

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
]
steps = [
  { shadow = 0.5, min_samples = 20, min_time_s = 3 },
  { share = 0.2, min_samples = 20, min_time_s = 5 },
  { share = 0.4, min_samples = 40, min_time_s = 60 },
  { share = 1.0, min_samples = 40, min_time_s = 5, proof = "all" },
]
"""
CUT_S = 30.0


@pytest.fixture
def urls(postgres_url: str) -> Iterator[tuple[str, str, Gate]]:
    """A schema of its own: its URL, one through a gate, and the gate."""
    folder = parse_qs(urlsplit(postgres_url).query).get("host")
    if folder is None:
        pytest.skip("the gate knows servers on a local socket only")
    gate, direct = Gate(f"{folder[0]}/.s.PGSQL.5432"), fresh_url(postgres_url)
    schema = parse_qs(urlsplit(direct).query)["schema"][0]
    yield direct, f"postgresql://postgres@127.0.0.1:{gate.port}/postgres?schema={schema}&sslmode=disable", gate
    gate.close()


async def _cut(place: CanaryPlace, load: Load, gate: Gate) -> int:
    """At first nothing is answered, then connections are refused; returns how many answers users got meanwhile."""
    looks, began_s = place.world.rollouts.latest(NAMESPACE)[0].looks, time.monotonic()
    gate.is_silent = True
    await asyncio.sleep(CUT_S / 2)
    gate.refuse(refuse=True)
    gate.is_silent = False
    await asyncio.sleep(CUT_S / 2)
    meanwhile = len(load.since(began_s + 1))
    assert place.world.rollouts.latest(NAMESPACE)[0].looks <= looks + 1, "the database was not cut off"
    assert place.disagreement() == ""
    gate.refuse(refuse=False)
    return meanwhile


def test_a_database_that_is_cut_off_in_mid_promotion_costs_no_user_a_request(
    tmp_path: Path, urls: tuple[str, str, Gate]
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    direct, through, gate = urls
    models = [noised(tmp_path / f"model{number}", noise) for number, noise in enumerate((0.0, 0.001))]
    drill = Drill(tmp_path, models, FALLBACK, database=through)
    drill.move("first", stable=1)
    place = CanaryPlace(drill, POLICY, direct)

    async def play() -> None:
        async with drill.serving(1, 1) as (_, url):
            load = Load(url)
            async with drill.asking(load):
                await place.until(lambda: len(load.heard) >= 20)
                given = ("2", "--policy", str(tmp_path / "policy.toml"), "--reason", "a good one")
                await asyncio.to_thread(place.tool, "start", *given)
                assert place.world.agreement()[4] == 0.5, "copies of requests come first"
                controller = await place.controller("", "--once")
                try:
                    await place.until(lambda: place.world.agreement()[3] == 0.4)
                    shadows = [row for row in place.world.log.after(NAMESPACE, 0) if row[6]]
                    meanwhile = await _cut(place, load, gate)
                    took_s = await place.until(lambda: place.world.agreement()[0] == "promoted")
                    assert await asyncio.wait_for(controller.wait(), LIMIT_S) == 0
                finally:
                    if controller.returncode is None:
                        controller.kill()
                        await controller.wait()
                last_s = await load.until(lambda recent: all(one.versions == {2} for one in recent))
            print(f"{load.asked} asked, {len(load.heard)} answers, {len(shadows)} copies; {meanwhile} during the cut")
            print(f"promoted {took_s:.1f} s after it, all answers of the new version after {last_s:.1f} s more")
            assert load.errors == []
            assert shadows
            assert meanwhile > 50
            assert drill.most_versions <= 2
            assert place.disagreement() == ""
            assert "come out as they were stored" in place.tool("replay", "1")

    try:
        asyncio.run(play())
    finally:
        place.world.close()
        drill.registry.close()

"""A controller whose PostgreSQL is cut off in mid-promotion: it changes nothing meanwhile, and goes on afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from serving_bridge.canary import Service
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tests.support.postgres_proxy import Gate
from tests.support.queue_engines import Clock, fresh_url

pytestmark = pytest.mark.postgres


@pytest.fixture
def worlds(postgres_url: str) -> Iterator[tuple[CanaryWorld, CanaryWorld, Gate]]:
    """One that nothing cuts off, the same through a gate, and the gate."""
    folder = parse_qs(urlsplit(postgres_url).query).get("host")
    if folder is None:
        pytest.skip("the gate knows servers on a local socket only")
    gate, direct = Gate(f"{folder[0]}/.s.PGSQL.5432"), fresh_url(postgres_url)
    schema = parse_qs(urlsplit(direct).query)["schema"][0]
    through = f"postgresql://postgres@127.0.0.1:{gate.port}/postgres?schema={schema}&sslmode=disable"
    clock = Clock()
    safe, cut = (CanaryWorld(url, url, clock=clock) for url in (direct, through))
    safe.fill()
    yield safe, cut, gate
    for world in (safe, cut):
        world.close()
    gate.close()


def test_a_cut_in_mid_promotion_changes_nothing_and_the_rollout_goes_on(
    worlds: tuple[CanaryWorld, CanaryWorld, Gate], tmp_path: Path
) -> None:
    safe, cut, gate = worlds
    ticks, told, standing = Clock(), list[dict[str, Any]](), list[dict[str, Any]]()
    service = Service(
        cut.place(),
        cut.controller("controller"),
        tmp_path,
        monotonic=ticks,
        purge=lambda: None,
        log=lambda event, **fields: told.append({"event": event, **fields}),
        standing=lambda **fields: standing.append(fields),
    )
    safe.start(safe.controller("cli")).release()

    def interval() -> None:
        safe.pass_time()
        ticks.now_s += 60
        service.turn()

    interval()
    before = safe.agreement()
    assert before[:4] == ("running", safe.candidate, safe.stable, 0.2)
    gate.refuse(refuse=True)
    for _ in range(2):
        interval()
        assert safe.agreement() == before, "users go on by the split that they had"
    assert standing[-1] == {"leads": 0}
    errors = [one["error"] for one in told if one["event"] == "waits"]
    assert errors
    assert len(set(errors)) == len(errors), "each once"
    gate.refuse(refuse=False)
    for _ in range(8):
        interval()
    assert safe.agreement() == ("promoted", None, safe.candidate, 0.0, 0.0)
    rollout = safe.rollouts.latest(NAMESPACE)[0]
    assert [one.look for one in safe.rollouts.decisions(rollout.rollout)] == list(range(1, rollout.looks + 1))

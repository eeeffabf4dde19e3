"""Drift of stable by day: means of what users got, read bit by bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from serving_bridge.canary import OBSERVATIONS, Observation, ObservationLog
from serving_bridge.database import DatabaseError, open_database
from tests.support.queue_engines import Clock
from tools.rollout_page import Drift

DAY_S = 86_400.0


@pytest.fixture
def log(database_url: str) -> Iterator[ObservationLog]:
    database = open_database(database_url, schema=OBSERVATIONS)
    yield ObservationLog(database)
    database.close()


def row(day: int, value: float, *, arm: str = "stable", version: int = 3, shadow: bool = False) -> Observation:
    measures = {"refusal": value, "length": 100 + value}
    return Observation("ns", "answer", arm, version, "acme", "c", measures, shadow, day * DAY_S + 60)


def test_a_day_has_the_mean_of_what_users_got_of_stable(log: ObservationLog) -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    log.add([row(9, value) for value in values] + [row(10, 0.0, version=4), row(10, 1.0, version=3)])
    log.add(
        [
            row(10, 1.0, arm="canary"),
            row(10, 1.0, shadow=True),
            Observation("other", "answer", "stable", 3, "a", "c", {}),
        ]
    )
    log.add([Observation("ns", "dropped", "stable", -1, "", "", {"count": 9.0}, at_s=10 * DAY_S)])
    shown = Drift(log, "ns").shown()
    assert not shown["is_behind"]
    first, second = shown["days"]
    assert (first["at_s"], first["versions"], second["versions"]) == (9 * DAY_S, [3], [3, 4])
    refusal = first["metrics"]["refusal"]
    assert (refusal["n"], refusal["mean"]) == (5, 0.6)
    assert refusal["half"] == pytest.approx(1.96 * np.std(values) / np.sqrt(5))
    assert second["metrics"]["length"]["mean"] == 100.5


def test_it_reads_a_part_at_a_time_and_only_what_is_new(log: ObservationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    drift = Drift(log, "ns", clock=clock, rows=4)
    log.add([row(1, 1.0) for _ in range(6)])
    seen = [drift.shown() for _ in range(2)]
    assert [(one["days"][0]["metrics"]["refusal"]["n"], one["is_behind"]) for one in seen] == [(4, True), (6, False)]
    log.add([row(2, 1.0)])
    assert len(drift.shown()["days"]) == 1, "not before its time"
    clock.now_s += 5
    assert len(drift.shown()["days"]) == 2

    def cut(*given: object, **more: object) -> None:
        raise DatabaseError("cut off")

    monkeypatch.setattr(log, "timed_after", cut)
    clock.now_s += 5
    assert len(drift.shown()["days"]) == 2, "what was read stays"


def test_two_weeks_are_kept(log: ObservationLog) -> None:
    log.add([row(day, 0.5) for day in range(1, 31)])
    assert [day["at_s"] / DAY_S for day in Drift(log, "ns").shown()["days"]] == list(range(17, 31))

"""Observations: what is kept of an answer, what a look makes of them, and a buffer that never waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving_bridge.canary import (
    OBSERVATIONS,
    CanaryError,
    LogSource,
    MetricPolicy,
    Observation,
    ObservationLog,
    Observer,
    distinct_pairs,
)
from serving_bridge.database import DatabaseError, open_database
from serving_bridge.registry import Cohort

METRICS = (
    MetricPolicy(name="error", margin=0.1),
    MetricPolicy(name="distinct", margin=0.1, per_tenant=False),
    MetricPolicy(name="thumbs_down", margin=0.1, coverage=0.0),
)


@pytest.fixture
def log(database_url: str) -> Iterator[ObservationLog]:
    database = open_database(database_url, schema=OBSERVATIONS)
    yield ObservationLog(database)
    database.close()


def row(arm: str = "canary", talk: str = "c1", *, version: int = 7, kind: Any = "answer", **more: Any) -> Observation:
    measures = {"error": 0.0} if "measures" not in more else more.pop("measures")
    return Observation("default", kind, arm, version, more.pop("tenant", "acme"), talk, measures, **more)


def seen(log: ObservationLog, after: int = 0, *, shadow: bool = False) -> Any:
    return LogSource(log).seen("default", after, canary=7, stable=5, shadow=shadow, metrics=METRICS)


def test_a_conversation_counts_once_with_the_mean_of_its_values(log: ObservationLog) -> None:
    log.add(
        [
            row(measures={"error": 1.0, "distinct": 0.5}),
            row(measures={"error": 0.0, "distinct": 0.7}),
            row(talk="c2", tenant="other", measures={"error": 1.0}),
            row("stable", version=5, measures={"error": 0.0}),
            row("stable", version=4, measures={"error": 1.0}),
            row(version=-1, talk="c3", measures={"error": 1.0}),
            row(shadow=True, measures={"error": 1.0}),
            row(kind="feedback", talk="c2", tenant="other", measures={"thumbs_down": 1.0}),
            Observation("default", "dropped", "stable", -1, "", "", {"count": 4.0}),
            Observation("acme", "answer", "canary", 7, "a", "b", {"error": 1.0}),
        ]
    )
    found = seen(log)
    assert (found.answers, found.conversations, found.dropped) == ((4, 1), (3, 1), 4)
    assert found.covered == {"distinct": (2, 0), "error": (4, 1), "thumbs_down": (1, 0)}
    cells = {(cell.metric, cell.arm, cell.tenant): (cell.n, cell.total, cell.squares) for cell in found.cells}
    assert cells[("error", "canary", "")] == (3, 2.5, 2.25)
    assert cells[("error", "canary", "acme")] == (2, 1.5, 1.25)
    assert cells[("error", "stable", "")] == (1, 0, 0)
    assert cells[("distinct", "canary", "")] == (1, 0.6, pytest.approx(0.36))
    assert ("distinct", "canary", "acme") not in cells
    assert (found.until, seen(log, found.until).answers) == (9, (0, 0))
    shadows = seen(log, shadow=True)
    assert (shadows.answers, dict(shadows.covered)["error"]) == ((1, 1), (1, 1))


def test_only_the_tenants_of_a_step_are_compared(log: ObservationLog) -> None:
    """Nobody else is dealt out at random: stable's answers to others would be compared with nothing of theirs."""
    for tenant in ("acme", "beta"):
        log.add([row("stable", f"s-{tenant}", version=5, tenant=tenant), row(talk=f"c-{tenant}", tenant=tenant)])
    of_acme = LogSource(log).seen(
        "default", 0, canary=7, stable=5, shadow=False, metrics=METRICS, cohort=Cohort(frozenset({"acme"}))
    )
    assert (of_acme.answers, of_acme.conversations, of_acme.until) == ((1, 1), (1, 1), 4)
    assert {cell.tenant for cell in of_acme.cells} == {"", "acme"}


def test_old_ones_go_and_damaged_rows_are_answers_without_values(log: ObservationLog) -> None:
    log.add([row(at_s=10.0), row(at_s=20.0)])
    assert (log.purge(15.0), log.last("default"), log.last("acme")) == (1, 2, 0)
    for bad in ("[1]", "{", '{"error": "high"}'):
        log._db.write(lambda session, bad=bad: session.execute("UPDATE observations SET measures = ?", (bad,)))
        assert (seen(log).answers, seen(log).covered) == ((1, 0), {})


@pytest.mark.parametrize(
    "change",
    [
        {"talk": "../x"},
        {"talk": "a\x1b[31m"},
        {"tenant": ""},
        {"version": -2},
        {"arm": "blue"},
        {"kind": "guess"},
        {"measures": {"error": float("nan")}},
        {"measures": {"error": "1"}},
        {"measures": {"x" * 61: 1.0}},
        {"measures": {f"m{n}": 1.0 for n in range(65)}},
    ],
    ids=range(10),
)
def test_what_can_not_be_kept_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CanaryError):
        row(**change)


@dataclass
class Answered:
    """As a gateway tells it."""

    tenant: str = "acme"
    conversation: str = "c1"
    arm: str = "canary"
    version: int = 7
    is_mixed: bool = False
    is_shadow: bool = False
    is_covered: bool = False
    status: int = 200
    ttft_s: float | None = 0.2
    seconds: float = 1.2
    completion_tokens: int = 21
    finishes: tuple[str, ...] = ("stop",)
    guard: str = "passed"


TEXT = "a rose is a rose is a rose is a rose"


@pytest.mark.parametrize(
    ("answered", "text", "expected"),
    [
        (
            Answered(),
            TEXT,
            {"error": 0, "guard": 0, "ttft_s": 0.2, "tokens_per_s": 20.0, "refusal": 0, "length": 21, "distinct": 0.3},
        ),
        (Answered(status=503, ttft_s=None), "", {"error": 1}),
        (Answered(finishes=("",)), "half", {"error": 1}),
        (Answered(is_covered=True), TEXT, {"error": 1}),
        (
            Answered(guard="cut", completion_tokens=1),
            "I'm sorry, but no",
            {"error": 0, "guard": 1, "ttft_s": 0.2, "refusal": 1, "length": 1},
        ),
    ],
    ids=["whole", "failed", "broken off", "covered", "cut"],
)
def test_the_measures_of_an_answer(tmp_path: Path, answered: Answered, text: str, expected: dict[str, float]) -> None:
    log = ObservationLog(open_database(tmp_path / "o.db", schema=OBSERVATIONS))
    observer = Observer(log, "default")
    observer.answered(answered, lambda: [text])
    assert observer.flush()
    ((kind, measures),) = log._db.read(lambda session: session.execute("SELECT kind, measures FROM observations"))
    assert kind == "answer"
    assert msgspec.json.decode(measures) == pytest.approx(expected)
    kept = log._db.read(lambda session: session.execute("SELECT * FROM observations"))
    assert "rose" not in str(kept), "no text is kept"


def test_clients_that_left_mixed_answers_and_bad_names_are_not_observed(tmp_path: Path) -> None:
    log = ObservationLog(open_database(tmp_path / "o.db", schema=OBSERVATIONS))
    observer = Observer(log, "default")
    for answered in (Answered(status=0), Answered(is_mixed=True), Answered(conversation=""), Answered(tenant="a b")):
        observer.answered(answered, lambda: [TEXT])
    assert observer.flush()
    assert log._db.read(lambda session: session.execute("SELECT kind, measures FROM observations")) == [
        ("dropped", '{"count":1.0}')
    ]


def test_pairs_are_counted_by_words() -> None:
    assert distinct_pairs("too short to say anything") is None
    assert distinct_pairs(" ".join(map(str, range(20)))) == 1.0
    assert distinct_pairs("no " * 50) == pytest.approx(1 / 49)
    began = time.process_time()
    distinct_pairs("word " * 2_000_000)
    assert time.process_time() - began < 0.5


def test_a_database_that_is_away_costs_no_request_and_what_is_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ObservationLog(open_database(tmp_path / "o.db", schema=OBSERVATIONS))
    observer = Observer(log, "default", capacity=10, every_s=0.01)
    real = log._db.write

    def cut(*given: Any, **more: Any) -> None:
        raise DatabaseError("cut off")

    monkeypatch.setattr(log._db, "write", cut)
    for number in range(8):
        observer.answered(Answered(conversation=f"c{number}"), lambda: [TEXT])
    assert not observer.flush()
    for number in range(8, 15):
        observer.answered(Answered(conversation=f"c{number}"), lambda: [TEXT])
    assert not observer.flush()
    monkeypatch.setattr(log._db, "write", real)
    observer.start()
    observer.close()
    rows = log._db.read(lambda session: session.execute("SELECT kind, measures FROM observations ORDER BY sequence"))
    assert [kind for kind, _ in rows] == ["answer"] * 10 + ["dropped"]
    assert rows[-1][1] == '{"count":5.0}'

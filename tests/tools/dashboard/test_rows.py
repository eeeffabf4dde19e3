"""Figures over x in a bounded number of rows."""

from __future__ import annotations

import math
import random

import pytest

from tools.dashboard.rows import MAX_NAMES, Rows


def test_few_rows_are_kept_as_they_came() -> None:
    rows = Rows(capacity=8)
    for x in (1, 2, 5):
        rows.add(x, 10.0 * x, {"reward": x / 10})
    found = [(row.first, row.t, row.figures["reward"].mean) for row in rows.since(-1)]
    assert found == [(1, 10.0, 0.1), (2, 20.0, 0.2), (5, 50.0, 0.5)]
    assert (rows.width, rows.generation) == (1.0, 0)


@pytest.mark.parametrize("count", [9, 1000, 10_001])
def test_many_rows_become_few_that_keep_sum_and_extremes(count: int) -> None:
    draw = random.Random(0)
    rows = Rows(capacity=8)
    values = [draw.uniform(-5, 5) for _ in range(count)]
    for x, value in enumerate(values):
        rows.add(x, float(x), {"loss": value})
    kept = rows.since(-1)
    assert 4 <= len(kept) <= 8
    assert sum(row.figures["loss"].count for row in kept) == count
    assert math.isclose(sum(row.figures["loss"].total for row in kept), math.fsum(values), abs_tol=1e-9 * count)
    assert min(row.figures["loss"].low for row in kept) == min(values)
    assert max(row.figures["loss"].high for row in kept) == max(values)
    assert [row.first for row in kept] == [rows.width * i for i in range(len(kept))]
    assert kept[-1].last == count - 1


def test_a_reader_gets_only_what_changed() -> None:
    rows = Rows(capacity=100)
    for x in range(10):
        rows.add(x, x, {"kl": 0.0})
    serial = rows.serial
    assert rows.since(serial) == []
    rows.add(10, 10.0, {"kl": 1.0})
    rows.add(3.5, 10.5, {"kl": 2.0})
    assert [row.first for row in rows.since(serial)] == [3, 10]
    assert rows.generation == 0


def test_what_a_resumed_run_trains_again_is_taken_away() -> None:
    rows = Rows(capacity=100)
    for x in range(1, 8):
        rows.add(x, x, {"kl": 1.0})
    rows.drop_from(5)
    rows.add(5, 20.0, {"kl": 3.0})
    assert [(row.first, row.figures["kl"].mean) for row in rows.since(-1)][-2:] == [(4, 1.0), (5, 3.0)]
    assert rows.generation == 1
    rows.drop_from(99)
    assert rows.generation == 1


def test_late_events_of_another_process_find_their_place() -> None:
    rows = Rows(capacity=100, width=2.0)
    for x, worker in ((4.0, "a"), (6.0, "a"), (4.5, "b"), (3.0, "b")):
        rows.add(x, x, {"tokens": 10}, worker=worker)
    found = [(row.first, row.last, row.figures["tokens"].total, sorted(row.workers)) for row in rows.since(-1)]
    assert found == [(3.0, 3.0, 10, ["b"]), (4.0, 4.5, 20, ["a", "b"]), (6.0, 6.0, 10, ["a"])]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, True, "1", None, [1]])
def test_what_is_no_number_is_left_out(odd: object) -> None:
    rows = Rows()
    rows.add(odd, 0.0, {"kl": 1.0})
    assert len(rows) == 0
    rows.add(1, 0.0, {"kl": odd, "loss": 2.0})
    assert [sorted(row.figures) for row in rows.since(-1)] == [["loss"]]


def test_names_are_bounded() -> None:
    rows = Rows()
    for number in range(3 * MAX_NAMES):
        rows.add(number, 0.0, {f"part {number}": 1.0})
    assert len(list(rows.names)) == MAX_NAMES

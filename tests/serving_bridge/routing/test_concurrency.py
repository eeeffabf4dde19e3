"""Where exactly a replica's limit grows, stays or is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving_bridge.routing.concurrency import Limit, Load, adjusted

CALM = Load(running=40, waiting=0, kv_usage=0.2, preemptions=3)
IDLE = Load(running=0, waiting=0, kv_usage=0.0, preemptions=0)
STEEP = Limit(64)


def change(
    before: Load | None, now: Load, *, limit: Limit = STEEP, in_flight: int = 64, at_least: int = 8
) -> tuple[int, bool]:
    after, was_cut = adjusted(limit, before, now, in_flight=in_flight, at_least=at_least, at_most=100)
    return after.value - limit.value, was_cut


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, CALM),
        (replace(CALM, running=0, waiting=1), CALM),
        (CALM, replace(CALM, running=0, waiting=1)),
    ],
)
def test_nothing_follows_from_one_look_or_from_a_pause(before: Load | None, now: Load) -> None:
    assert change(before, now) == (0, False)


def test_an_idle_server_is_no_paused_one() -> None:
    idle = replace(CALM, running=0)
    assert change(idle, idle) == (36, False)


def test_it_grows_where_four_fifths_are_in_use_up_to_what_it_may() -> None:
    assert change(CALM, CALM, limit=Limit(40), in_flight=32) == (40, False)
    assert change(CALM, CALM, limit=Limit(40), in_flight=31) == (0, False)
    assert change(CALM, CALM, limit=Limit(40, is_doubling=False), in_flight=40) == (8, False)
    assert change(CALM, CALM, limit=Limit(96, is_doubling=False), in_flight=96) == (4, False)


def test_it_grows_up_to_nine_tenths_of_the_cache() -> None:
    assert change(CALM, replace(CALM, kv_usage=0.9)) == (36, False)
    assert change(CALM, replace(CALM, kv_usage=0.91)) == (0, False)


def test_preemptions_count_with_half_the_cache_in_use_before_or_after() -> None:
    more = replace(CALM, preemptions=4)
    assert change(CALM, more) == (36, False)
    assert change(replace(CALM, kv_usage=0.5), more) == (-20, True)
    assert change(CALM, replace(more, kv_usage=0.5)) == (-20, True)
    assert change(replace(CALM, kv_usage=0.5), replace(CALM, kv_usage=0.5)) == (36, False)


def test_a_queue_is_more_than_one_request_and_a_tenth_of_those_that_run() -> None:
    stands = replace(CALM, waiting=5)
    assert change(stands, stands) == (-20, True)
    assert change(replace(CALM, waiting=4), replace(CALM, waiting=4)) == (36, False)
    few = replace(CALM, running=2, waiting=1)
    assert change(few, few) == (36, False)
    assert change(replace(few, waiting=2), replace(few, waiting=2)) == (-20, True)


def test_a_queue_that_comes_or_goes_stops_the_growth_and_cuts_nothing() -> None:
    stands = replace(CALM, waiting=9)
    assert change(CALM, stands) == (0, False)
    assert change(stands, replace(CALM, waiting=8)) == (0, False)
    assert change(stands, CALM) == (36, False)


def test_it_is_not_cut_below_what_it_may_always_have() -> None:
    stands = replace(CALM, waiting=9)
    assert change(stands, stands, limit=Limit(9)) == (-1, True)
    assert change(stands, stands, limit=Limit(8)) == (0, False)
    assert not adjusted(Limit(8), stands, stands, in_flight=8, at_least=8, at_most=100)[0].is_doubling


# Over many looks


def steps(limit: Limit, *loads: Load, in_flight: int | None = None) -> tuple[Limit, int]:
    """The limit after these looks, all of it in use, and how often it was cut."""
    cuts, before = 0, None
    for load in loads:
        used = limit.value if in_flight is None else in_flight
        limit, cut = adjusted(limit, before, load, in_flight=used, at_least=8, at_most=100)
        cuts, before = cuts + cut, load
    return limit, cuts


def test_the_limit_doubles_while_all_is_well_and_stays_where_it_is_not_used() -> None:
    assert steps(Limit(8), *[IDLE] * 4) == (Limit(64), 0)
    assert steps(Limit(8), *[IDLE] * 9) == (Limit(100), 0)
    assert steps(Limit(8), *[IDLE] * 4, in_flight=3) == (Limit(8), 0)


def test_preemption_under_memory_pressure_cuts_it_and_then_it_grows_by_steps() -> None:
    full = Load(running=60, waiting=0, kv_usage=0.97, preemptions=2)
    limit, cuts = steps(Limit(64), Load(60, 0, 0.8, 0), full)
    assert (limit, cuts) == (Limit(44, is_doubling=False), 1)
    assert steps(limit, IDLE, IDLE, IDLE) == (Limit(60, is_doubling=False), 0)
    assert steps(Limit(9), Load(60, 0, 0.8, 0), full)[0].value == 8


def test_a_standing_queue_cuts_it_and_a_passing_one_does_not() -> None:
    assert steps(Limit(64), Load(40, 10, 0.2, 0), Load(40, 12, 0.2, 0)) == (Limit(44, is_doubling=False), 1)
    assert steps(Limit(64), Load(40, 10, 0.2, 0), Load(40, 3, 0.2, 0)) == (Limit(100), 0)
    assert steps(Limit(64), Load(40, 0, 0.2, 0), Load(40, 9, 0.2, 0)) == (Limit(64), 0)


def test_a_pause_for_new_weights_is_not_taken_for_overload() -> None:
    """It preempts everything, and all of it waits, with a cache that has been cleared."""
    running, held, again = Load(60, 0, 0.3, 0), Load(0, 60, 0.0, 60), Load(60, 0, 0.2, 60)
    assert steps(Limit(64), running, held, again) == (Limit(64), 0)
    assert steps(Limit(64), running, again) == (Limit(100), 0)


def test_it_settles_around_what_a_replica_can_take() -> None:
    limit, seen = Limit(8), []
    before: Load | None = None
    for step in range(200):
        load = Load(min(limit.value, 50), max(0, limit.value - 50), 0.4, 0)
        limit, _ = adjusted(limit, before, load, in_flight=limit.value, at_least=4, at_most=1000)
        before = load
        seen += [limit.value] if step > 20 else []
    assert 30 <= min(seen) <= max(seen) <= 75
    assert 40 <= sum(seen) / len(seen) <= 62

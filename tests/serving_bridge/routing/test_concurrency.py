"""Where exactly a replica's limit grows, stays or is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving_bridge.routing.concurrency import Limit, Load, adjusted

CALM = Load(running=40, waiting=0, kv_usage=0.2, preemptions=3)


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

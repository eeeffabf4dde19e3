"""The table of replica states, searched whole: what no path of it allows can't happen to a replica."""

from __future__ import annotations

from typing import get_args

import pytest

from serving_bridge.routing.lifecycle import (
    RUNNING,
    STATES,
    TAKES_REQUESTS,
    TRANSITIONS,
    Event,
    State,
    TransitionError,
    advance,
)

EVENTS: tuple[Event, ...] = get_args(Event)


def reachable(start: State, *, without: set[Event]) -> set[State]:
    """States that some sequence of events leads to from `start`, `start` included."""
    found, queue = {start}, [start]
    while queue:
        state = queue.pop()
        for event in EVENTS:
            following = TRANSITIONS.get((state, event))
            if following is not None and event not in without and following not in found:
                found.add(following)
                queue.append(following)
    return found


@pytest.mark.parametrize("start", sorted(set(STATES) - set(TAKES_REQUESTS)))
def test_only_a_round_that_proved_the_weights_leads_back_to_serving(start: State):
    assert reachable(start, without={"proven"}).isdisjoint(TAKES_REQUESTS)
    assert "healthy" in reachable(start, without=set())


@pytest.mark.parametrize("start", ["stopped", "starting", "dead", "restarting", "draining"])
def test_no_round_proves_a_replica_before_its_process_has_started(start: State):
    assert reachable(start, without={"started"}).isdisjoint(RUNNING)


def test_a_suspect_recovers_without_a_round_only_where_its_weights_stayed_proven():
    into_suspect = {(state, event) for (state, event), following in TRANSITIONS.items() if following == "suspect"}
    assert into_suspect == {("healthy", "suspected")}
    into_healthy = {(state, event) for (state, event), following in TRANSITIONS.items() if following == "healthy"}
    assert {(state, event) for state, event in into_healthy if event != "proven"} == {("suspect", "recovered")}


@pytest.mark.parametrize("state", STATES)
def test_every_state_can_be_left_and_ends_where_it_is_told_to(state: State):
    assert any(at == state and following != state for (at, _), following in TRANSITIONS.items())
    if state in ("stopped", "draining"):
        return
    assert advance(advance(state, "drain"), "ended") == "stopped"


def test_every_running_state_notices_that_the_process_is_gone():
    assert {advance(state, "lost") for state in (*RUNNING, "starting", "restarting")} == {"dead"}


def test_what_the_table_does_not_know_raises_and_says_what_it_expected():
    for state in STATES:
        for event in EVENTS:
            if (state, event) not in TRANSITIONS:
                with pytest.raises(TransitionError, match=f"'{event}' can't happen to a replica that is {state}"):
                    advance(state, event)
    with pytest.raises(TransitionError, match=r"is dead; expected one of \['drain', 'start'\]"):
        advance("dead", "recovered")

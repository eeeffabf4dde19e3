"""The table of a group's states: what it allows, and that the rows follow it."""

from __future__ import annotations

from typing import get_args

import pytest

from serving_bridge.database.database import Session
from serving_bridge.queue import rows as queue_rows
from serving_bridge.queue.states import ENDED, LIVE, STATES, TRANSITIONS, Event, State, TransitionError, next_state
from tests.support.queue_engines import Place, place

__all__ = ["place"]  # a fixture

#: Written from the description of what a group goes through; `x` is where an event can't meet it.
EXPECTED = """
              ready    leased        trained       acknowledged  dropped       dead
lease         leased   x             x             x             x             x
train         x        trained       x             x             x             x
acknowledge   x        x             acknowledged  x             x             x
settle        acknowledged acknowledged acknowledged acknowledged acknowledged acknowledged
restore       x        ready         ready         x             x             x
expire        x        ready         x             x             x             x
reject        x        ready         x             x             x             x
exhaust       x        dead          x             x             x             x
bury          x        dead          x             x             x             x
drop          dropped  x             x             x             x             x
age           dead     x             x             x             x             x
erase         dropped  x             x             x             x             dropped
requeue       x        x             x             x             x             ready
"""


def _expected() -> dict[tuple[State, Event], str]:
    head, *lines = [line.split() for line in EXPECTED.strip().splitlines()]
    return {(state, line[0]): to for line in lines for state, to in zip(head, line[1:], strict=True)}  # type: ignore[misc]


def test_every_event_takes_every_state_where_it_should() -> None:
    expected = _expected()
    assert set(expected) == {(state, event) for state in STATES for event in get_args(Event)}
    for (state, event), target in expected.items():
        if target == "x":
            with pytest.raises(TransitionError, match=f"{event} meets a group that is {state}, expected one that is"):
                next_state(state, event)
        else:
            assert next_state(state, event) == target


def test_what_ended_stays_ended_but_for_a_checkpoint() -> None:
    for event, transition in TRANSITIONS.items():
        if event != "settle":
            assert not set(transition.sources) & set(ENDED)
    assert set(LIVE) | set(ENDED) | {"dead"} == set(STATES)


def test_rows_change_as_the_table_says_and_others_stay(place: Place) -> None:
    database = place.open().database
    for (state, event), target in _expected().items():

        def work(session: Session, state: State = state, event: Event = event) -> tuple[int, str]:
            session.execute("DELETE FROM groups")
            session.execute(
                "INSERT INTO groups (group_id, prompt_index, state, oldest_version, created_s) "
                "VALUES ('g', 0, ?, 0, 0)",
                (state,),
            )
            changed = queue_rows.change_named(session, event, ["g"])
            return len(changed), session.execute("SELECT state FROM groups")[0][0]

        expected = (0, state) if target == "x" else (1, target)
        assert database.write(work) == expected, (state, event)

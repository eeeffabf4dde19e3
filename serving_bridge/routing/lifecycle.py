"""The states of a replica and every way from one to another, as one table.

A replica samples for the run only with weights that a round loaded and the golden prompts proved: whatever happened to
it, the only ways into "healthy" are `proven` and, for a replica that was merely slow to answer, `recovered`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from learner_jax.runtime import WeirError

#: stopped     no process, and none is wanted
#: starting    its process starts for the first time, or after a stop that was asked for
#: stale       runs, with weights that no round has proven
#: healthy     serves proven weights
#: suspect     serves proven weights, but health checks or requests fail: used only where nothing is healthy
#: unfit       runs, paused, with weights that a round could not prove
#: draining    finishes what it has, and takes nothing new
#: dead        its process ended or hangs; it is ended for good before it is started again
#: restarting  its process starts after it was dead
State = Literal["stopped", "starting", "stale", "healthy", "suspect", "unfit", "draining", "dead", "restarting"]

#: start      its process is started
#: started    the process answers and is warm
#: proven     a weight round loaded a version, or found it loaded, and its golden prompts passed
#: refuted    a weight round left it behind a pause, or out of reach
#: suspected  health checks in a row, or many requests, failed
#: recovered  the health checks that made it suspect pass again, and its requests never were why
#: lost       its process ended, hangs, or could not start
#: drain      it shall take nothing new
#: ended      its process has ended, as asked
Event = Literal["start", "started", "proven", "refuted", "suspected", "recovered", "lost", "drain", "ended"]

STATES: tuple[State, ...] = get_args(State)
#: states with a process that answers requests of some kind
RUNNING: frozenset[State] = frozenset({"stale", "healthy", "suspect", "unfit"})
#: states that may sample for the run, the better first
TAKES_REQUESTS: tuple[State, ...] = ("healthy", "suspect")

TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        ("stopped", "start"): "starting",
        ("dead", "start"): "restarting",
        ("starting", "started"): "stale",
        ("restarting", "started"): "stale",
        ("starting", "lost"): "dead",
        ("restarting", "lost"): "dead",
        ("stale", "proven"): "healthy",
        ("unfit", "proven"): "healthy",
        ("suspect", "proven"): "healthy",
        ("healthy", "proven"): "healthy",
        ("stale", "refuted"): "unfit",
        ("unfit", "refuted"): "unfit",
        ("suspect", "refuted"): "unfit",
        ("healthy", "refuted"): "unfit",
        ("healthy", "suspected"): "suspect",
        ("suspect", "recovered"): "healthy",
        ("stale", "lost"): "dead",
        ("unfit", "lost"): "dead",
        ("healthy", "lost"): "dead",
        ("suspect", "lost"): "dead",
        ("starting", "drain"): "draining",
        ("restarting", "drain"): "draining",
        ("stale", "drain"): "draining",
        ("unfit", "drain"): "draining",
        ("healthy", "drain"): "draining",
        ("suspect", "drain"): "draining",
        ("dead", "drain"): "draining",
        ("draining", "ended"): "stopped",
    }
)


class TransitionError(WeirError, RuntimeError):
    """An event that can't happen to a replica in its state: the controller is wrong about it."""


def advance(state: State, event: Event) -> State:
    """The state that an event leads to.

    Raises:
      TransitionError: the table has no such transition.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        known = sorted(of for at, of in TRANSITIONS if at == state)
        raise TransitionError(f"{event!r} can't happen to a replica that is {state}; expected one of {known}") from None

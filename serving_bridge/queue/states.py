"""The states of a group in the queue, and the only ways from one to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from learner_jax.runtime import WeirError

State = Literal["ready", "leased", "trained", "acknowledged", "dropped", "dead"]
Event = Literal[
    "lease",
    "train",
    "acknowledge",
    "settle",
    "restore",
    "expire",
    "exhaust",
    "reject",
    "bury",
    "drop",
    "age",
    "erase",
    "requeue",
]

STATES: tuple[State, ...] = get_args(State)
#: States in which a group's payload is gone and only its id is kept, so that it is not accepted again.
ENDED: tuple[State, ...] = ("acknowledged", "dropped")
#: States in which a group may still be trained on, or was and could come back.
LIVE: tuple[State, ...] = ("ready", "leased", "trained")


class TransitionError(WeirError, ValueError):
    """A state that an event can't meet."""


@dataclass(frozen=True)
class Transition:
    """From any of `sources` to `target`."""

    sources: tuple[State, ...]
    target: State


#: A group enters as "ready".
TRANSITIONS: Mapping[Event, Transition] = MappingProxyType(
    {
        # A consumer takes it, trains on it, and commits that in a checkpoint.
        "lease": Transition(("ready",), "leased"),
        "train": Transition(("leased",), "trained"),
        "acknowledge": Transition(("trained",), "acknowledged"),
        # The learner starts again: its checkpoint holds the group, or does not.
        "settle": Transition(STATES, "acknowledged"),
        "restore": Transition(("leased", "trained"), "ready"),
        # A lease that ended otherwise: with tries left, without, given back, or unreadable.
        "expire": Transition(("leased",), "ready"),
        "reject": Transition(("leased",), "ready"),
        "exhaust": Transition(("leased",), "dead"),
        "bury": Transition(("leased",), "dead"),
        # Nobody took it in time: too many versions behind, or too old.
        "drop": Transition(("ready",), "dropped"),
        "age": Transition(("ready",), "dead"),
        # Its user took the consent back, and nobody works on it.
        "erase": Transition(("ready", "dead"), "dropped"),
        # A person gives a dead letter another chance.
        "requeue": Transition(("dead",), "ready"),
    }
)


def next_state(state: State, event: Event) -> State:
    """Where an event takes a group.

    Raises:
      TransitionError: the event can't meet a group in this state.
    """
    transition = TRANSITIONS[event]
    if state not in transition.sources:
        raise TransitionError(
            f"{event} meets a group that is {state}, expected one that is {' or '.join(transition.sources)}"
        )
    return transition.target

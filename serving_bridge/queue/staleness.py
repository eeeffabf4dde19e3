"""The two places where staleness is bounded: how much may be dispatched, and what may still be trained on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How fast a run may consume prompts.

    Attributes:
      max_staleness: versions that a group may lag behind the weights it trains; 0 is synchronous training.
      groups_per_step: groups that one optimizer step consumes.
      total_steps: optimizer steps of the whole run; nothing is dispatched beyond them.
    """

    max_staleness: int
    groups_per_step: int
    total_steps: int


def dispatch_room(pace: Pace, *, completed_steps: int, served_step: int, outstanding: int, running: int) -> int:
    """How many more groups may start now.

    A group dispatched while the fleet serves the weights of step `served_step` is consumed, in order, at most
    `max_staleness` steps later if

        completed_steps * G + outstanding + running <= (max_staleness + served_step + 1) * G.

    Weights published but not yet served don't open the gate: `served_step` is the fleet's, capped by
    `completed_steps`, since after a learner's restart the fleet can be ahead of it for a moment.

    Args:
      outstanding: groups accepted by the queue and not yet trained on.
      running: groups dispatched and not yet accepted.
    """
    effective_step = min(served_step, completed_steps)
    last_step = min(pace.max_staleness + effective_step + 1, pace.total_steps)
    allowed = last_step * pace.groups_per_step
    return max(0, allowed - completed_steps * pace.groups_per_step - outstanding - running)


def is_stale(*, trained_version: int, oldest_version: int, max_staleness: int) -> bool:
    """Whether a group must not be trained on: its oldest token lags the newest weights by too many versions."""
    return trained_version - oldest_version > max_staleness

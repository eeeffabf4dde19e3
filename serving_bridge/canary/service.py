"""The controller as a process: waits for rollouts, looks in time, and stands by where another one holds the lease."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from learner_jax.runtime import crash_point
from serving_bridge.canary.controller import Controller
from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.moves import Place
from serving_bridge.canary.rollouts import Rollout
from serving_bridge.canary.training_note import note_newest
from serving_bridge.database import DatabaseError
from serving_bridge.registry import NotHolderError, RegistryError

POLL_S = 1.0
_PURGE_EVERY_S = 600.0

Log = Callable[..., None]


class Service:
    """Brings rollouts of a namespace to their end, one after the other.

    Args:
      root: the registry's folder, for the note to training.
      monotonic: seconds that no clock change moves; looks come by it.
      purge: removes old observations; called now and then.
      log: takes an event's name and its fields.
      standing: takes where the newest rollout stands after each turn, as `serving_bridge.metrics` names it.
    """

    def __init__(
        self,
        place: Place,
        controller: Controller,
        root: Path,
        *,
        monotonic: Callable[[], float],
        purge: Callable[[], object],
        log: Log,
        standing: Callable[..., None] = lambda **fields: None,
    ) -> None:
        self._place, self._controller, self._root = place, controller, root
        self._monotonic, self._purge, self._log, self._standing = monotonic, purge, log, standing
        self._due_s = self._purge_due_s = monotonic()
        self._said, self._is_open = "", False

    @property
    def pause_s(self) -> float:
        """Seconds until there may be something to do."""
        return min(max(self._due_s - self._monotonic(), 0.0), POLL_S) if self._is_open else POLL_S

    def turn(self) -> Rollout | None:
        """Does what is due now; returns the open rollout, or the one that it just ended. Errors are told, and survived:
        the next turn tries again."""
        try:
            rollout = self._turn()
            self._noted()
            if self._monotonic() >= self._purge_due_s:
                self._purge_due_s = self._monotonic() + _PURGE_EVERY_S
                self._purge()
        except (NotHolderError, DatabaseError, RegistryError, CanaryError, OSError) as error:
            # Files: the note, those of an entry. Canary: a row that was changed.
            if (told := str(error)) != self._said:
                self._log("waits", error=told)
            self._said = told
            self._controller.forget()
            self._is_open, rollout = False, None
        else:
            self._said = ""
        self._tell_standing(leads=rollout is not None)
        return rollout

    def _turn(self) -> Rollout | None:
        rollout = self._place.rollouts.open_one(self._place.namespace)
        self._is_open = rollout is not None
        if rollout is None:
            self._controller.release()
            self._due_s = self._monotonic()
            return None
        self._controller.hold()
        if not rollout.asked and self._monotonic() < self._due_s:
            return rollout
        after = self._controller.look()
        self._due_s = self._monotonic() + rollout.policy.interval_s
        if after is not None:
            self._tell(rollout, after)
        return after

    def _noted(self) -> None:
        """Keeps the note to training at what the newest rollout means; it may be a moment behind."""
        if note_newest(self._place, self._root):
            crash_point("canary.noted")

    def _tell_standing(self, *, leads: bool) -> None:
        try:
            newest = self._place.rollouts.latest(self._place.namespace)
        except (DatabaseError, CanaryError):  # the second: a row that was changed, which the look before told
            self._standing(leads=0)
            return
        if not newest:
            self._standing(open=0, leads=0)
            return
        one = newest[0]
        self._standing(
            open=int(one.is_open),
            leads=int(leads),
            phase=one.phase,
            rollout=one.rollout,
            entry=one.number,
            step=one.state.step + 1,
            step_s=one.state.spent_s,
            max_hold_s=one.policy.max_hold_s,
            interval_s=one.policy.interval_s,
            looked_s=one.looked_s,
        )

    def _tell(self, before: Rollout, after: Rollout) -> None:
        step = after.policy.steps[after.state.step].name
        self._log("look", rollout=after.rollout, look=after.looks, step=step, phase=after.phase)
        if after.phase != before.phase or after.state.step != before.state.step:
            self._log(
                "rollout", rollout=after.rollout, entry=after.number, phase=after.phase, step=step, reason=after.reason
            )

"""The rollout controller: looks at a candidate's traffic in intervals, and moves alias and split as the rules say.

Where a rollout stands is in the registry's database alone. Each change is one transaction with the alias, the split,
the entry's stage and the decision that it follows from, under the registry's lease. So a controller may be killed
anywhere: the next one finds the whole change, or none of it.
"""

from __future__ import annotations

from collections.abc import Callable

from learner_jax.contracts import quoted
from learner_jax.runtime import crash_point
from serving_bridge.canary import rollouts
from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.looks import Decision, Look
from serving_bridge.canary.machine import decide
from serving_bridge.canary.moves import PREVIOUS, Moves, Place, stage_of, traffic_of
from serving_bridge.canary.policy import CanaryPolicy
from serving_bridge.canary.rollouts import Phase, Rollout
from serving_bridge.database import DatabaseError, Session
from serving_bridge.registry import (
    CANARY,
    STABLE,
    NotHolderError,
    RegistryError,
    RegistryLease,
)

#: Seconds after which another controller takes over from one that was killed.
LEASE_S = 20.0
_ENDS: dict[str, Phase] = {"failure": "rolled_back", "inconclusive": "inconclusive"}


class _Interrupted(Exception):
    """Somebody asked for something, or another controller looked, while this look was under way."""


class Controller:
    """Brings candidates of one namespace to all users, or back.

    Args:
      holder: a name that no other process has, by which it takes the registry's lease.
      take_over: also from another that holds it; that one is fenced off.
    """

    def __init__(self, place: Place, *, holder: str, take_over: bool = False) -> None:
        self._place, self._holder, self._force = place, holder, take_over
        self._moves = Moves(place, holder)
        self._lease: RegistryLease | None = None

    def start(self, number: int, policy: CanaryPolicy, *, actor: str, reason: str) -> Rollout:
        """Begins the rollout of an entry with its first step.

        Raises:
          CanaryError: another rollout is under way, or there is no stable entry to compare with.
          RegistryError: the entry is not to be served, or is not as it was registered.
        """
        place = self._place
        if (other := place.rollouts.open_one(place.namespace)) is not None:
            raise CanaryError(
                f"rollout {other.rollout} of entry {other.number} is under way in {place.namespace}: wait for its end, "
                f"or abort it"
            )
        stable = place.index.aliases.current(place.namespace).get(STABLE)
        if stable is None:
            raise CanaryError(
                f"{place.namespace} has no alias stable to compare with: the first entry is moved there by hand "
                f'(tools.registry move REGISTRY stable={number} --reason "first")'
            )
        if stable == number:
            raise CanaryError(f"entry {number} of {place.namespace} is stable already; expected another one")
        self._moves.check_files(number)
        first = place.source.last(place.namespace)
        made: list[Rollout] = []

        def also(session: Session) -> None:
            made.clear()
            rollout = rollouts.insert(
                session,
                place.namespace,
                number=number,
                stable=stable,
                policy=policy,
                first=first,
                actor=actor,
                reason=reason,
                now_s=place.clock(),
            )
            made.append(rollout)
            self._moves.notice(session, rollout, "started", [reason])

        step = policy.steps[0]
        place.index.aliases.move(
            self.hold(),
            {CANARY: number},
            actor=actor,
            reason=reason,
            expected={STABLE: stable},
            stages=self._moves.stages(number, stage_of(step)),
            traffic=traffic_of(policy, step),
            also=also,
        )
        crash_point("canary.started")
        return made[0]

    def look(self) -> Rollout | None:
        """Does what was asked of the open rollout, looks at its traffic once, and does what follows.

        Returns:
          The rollout as it then stands; None if none is open.

        Raises:
          NotHolderError: another controller has taken over; nothing was changed.
          DatabaseError: the registry's database can't be reached; a database of observations is none of this.
        """
        place = self._place
        rollout = place.rollouts.open_one(place.namespace)
        if rollout is None:
            return None
        lease = self.hold()
        try:
            if rollout.asked:
                rollout = self._obey(lease, rollout)
            elif (moved := self._moved(rollout)) is not None:
                self._moves.end(lease, rollout, "aborted", moved, leave_aliases=True)
                rollout = place.rollouts.one(place.namespace, rollout.rollout)
            if not rollout.is_open:
                return rollout
            self._decide(lease, rollout)
        except _Interrupted:
            return self.look()
        return place.rollouts.one(place.namespace, rollout.rollout)

    def obey(self) -> None:
        """Does what was asked of the open rollout, and looks at nothing. Errors as of `look`."""
        place = self._place
        rollout = place.rollouts.open_one(place.namespace)
        if rollout is None or not rollout.asked:
            return
        try:
            self._obey(self.hold(), rollout)
        except _Interrupted:
            self.obey()

    def hold(self) -> RegistryLease:
        """The registry's lease, taken or renewed."""
        place = self._place
        if self._lease is None or place.clock() > self._lease.expires_s - LEASE_S / 2 or self._force:
            self._lease = place.index.aliases.take_lease(place.namespace, self._holder, LEASE_S, by_force=self._force)
            self._force = False
        return self._lease

    def release(self) -> None:
        """Gives the lease back if it is held."""
        if self._lease is not None:
            self._place.index.aliases.release_lease(self._lease)
            self._lease = None

    def forget(self) -> None:
        """Takes the lease anew before the next change: it may have been lost."""
        self._lease = None

    def take_back(self, *, actor: str, reason: str) -> int:
        """Makes the entry before stable again, and stable the one before; doing it twice changes nothing.

        Returns:
          The entry that is stable now.

        Raises:
          CanaryError: a rollout is under way, or there is no entry to go back to.
          RegistryError: the entry before can't be served any more.
        """
        place = self._place
        if (rollout := place.rollouts.open_one(place.namespace)) is not None:
            raise CanaryError(f"rollout {rollout.rollout} is under way: abort it first")
        current = place.index.aliases.current(place.namespace)
        stable, previous = current.get(STABLE), current.get(PREVIOUS)
        if stable is None or previous is None:
            raise CanaryError(f"{place.namespace} has no aliases stable and previous: there is nothing to go back to")
        self._moves.check_files(previous)
        place.index.aliases.move(
            self.hold(),
            {STABLE: previous, PREVIOUS: stable},
            actor=actor,
            reason=reason,
            expected={STABLE: stable, PREVIOUS: previous},
            stages=self._moves.stages(stable, "retired") | self._moves.stages(previous, "stable"),
        )
        return previous

    def _decide(self, lease: RegistryLease, rollout: Rollout) -> None:
        look = _look(self._place, rollout)
        crash_point("canary.seen")
        state, decision = decide(rollout.policy, rollout.state, look)

        def also(session: Session) -> None:
            self._check_unchanged(session, rollout)
            rollouts.decided(session, rollout, look, state, decision)

        match decision.verdict:
            case "hold":
                self._place.index.aliases.under(lease, also)
            case "next":
                self._or_back(
                    lease, rollout, also, lambda: self._moves.next_step(lease, rollout, state, decision, also)
                )
            case "success":
                self._or_back(lease, rollout, also, lambda: self._moves.promote(lease, rollout, decision, also))
            case _:
                self._moves.end(lease, rollout, _ENDS[decision.verdict], "; ".join(decision.reasons), also=also)
        crash_point("canary.decided")

    def _or_back(
        self, lease: RegistryLease, rollout: Rollout, also: Callable[[Session], None], go_on: Callable[[], None]
    ) -> None:
        """Goes on; a candidate that can't is taken back."""
        try:
            go_on()
        except NotHolderError:
            raise
        except RegistryError as error:
            self._moves.end(lease, rollout, "rolled_back", f"it can't go on: {error}", also=also)

    def _obey(self, lease: RegistryLease, rollout: Rollout) -> Rollout:
        if rollout.asked == "abort":
            self._moves.end(lease, rollout, "aborted", "somebody aborted it")
        else:
            phase: Phase = "paused" if rollout.asked == "pause" else "running"

            def work(session: Session) -> None:
                self._check_unchanged(session, rollout)  # else an abort that came in between would be forgotten
                rollouts.in_phase(session, rollout, phase, f"somebody asked for it: {rollout.asked}")
                self._moves.notice(session, rollout, rollout.asked, [])

            self._place.index.aliases.under(lease, work)
        crash_point("canary.obeyed")
        return self._place.rollouts.one(self._place.namespace, rollout.rollout)

    def _moved(self, rollout: Rollout) -> str | None:
        """What somebody did to the aliases of a rollout that is under way."""
        current = self._place.index.aliases.current(self._place.namespace)
        for alias, number in ((CANARY, rollout.number), (STABLE, rollout.stable)):
            if current.get(alias) != number:
                return f"somebody moved {alias} to {current.get(alias, 'nothing')}, it was {number}"
        return None

    def _check_unchanged(self, session: Session, rollout: Rollout) -> None:
        now = rollouts.open_one(session, rollout.namespace, locked=True)
        if now is None or (now.rollout, now.looks, now.asked) != (rollout.rollout, rollout.looks, rollout.asked):
            raise _Interrupted


def next_decision(place: Place, rollout: Rollout) -> Decision:
    """What a look would decide now; nothing is changed."""
    return decide(rollout.policy, rollout.state, _look(place, rollout))[1]


def _look(place: Place, rollout: Rollout) -> Look:
    """What came since the look before. That the observations can't be reached is a look, too."""
    now_s, state = place.clock(), rollout.state
    passed_s, paused = now_s - rollout.looked_s, rollout.phase == "paused"
    canary, stable = (
        place.index.standing(place.namespace, number).entry.weight_version
        for number in (rollout.number, rollout.stable)
    )
    step, metrics = rollout.policy.steps[state.step], rollout.policy.metrics
    cohort = rollout.policy.cohort_of(step, rollout.number)
    try:
        seen = place.source.seen(
            place.namespace,
            state.until,
            canary=canary,
            stable=stable,
            shadow=not step.share,
            metrics=metrics,
            cohort=cohort,
            bars=state.bars,
        )
    except DatabaseError as error:
        return Look(now_s, passed_s, state.until, failure=quoted(str(error), 300), paused=paused)
    counts = (seen.answers, seen.conversations, seen.dropped, dict(seen.covered), list(seen.cells), dict(seen.bars))
    return Look(now_s, passed_s, seen.until, *counts, paused=paused)

"""A rollout's changes of alias, split, stages and messages: one transaction each, under the registry's lease."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving_bridge.canary import rollouts
from serving_bridge.canary.looks import Decision, State
from serving_bridge.canary.observations import Source
from serving_bridge.canary.policy import CanaryPolicy, StepPolicy
from serving_bridge.canary.rollouts import Phase, Rollout
from serving_bridge.database import Session
from serving_bridge.registry import (
    CANARY,
    STABLE,
    STAGES,
    RegistryError,
    RegistryIndex,
    RegistryLease,
    TrafficChange,
)

PREVIOUS = "previous"
#: Stage of the candidate at the end: what was inconclusive or aborted may be tried again.
_LAST_STAGE: dict[str, str] = {"rolled_back": "rolled_back", "inconclusive": "passed", "aborted": "passed"}


@dataclass(frozen=True)
class Place:
    """What a controller works on.

    Attributes:
      problems: what of an entry's files is not as it was registered.
      clock: seconds since the epoch.
    """

    namespace: str
    index: RegistryIndex
    rollouts: rollouts.Rollouts
    source: Source
    problems: Callable[[int], Sequence[str]]
    clock: Callable[[], float]


class Moves:
    """The changes of rollouts in one place.

    Args:
      actor: what the registry's history says of who moved.
    """

    def __init__(self, place: Place, actor: str) -> None:
        self._place, self._actor = place, actor

    def next_step(
        self, lease: RegistryLease, rollout: Rollout, state: State, decision: Decision, also: Callable[[Session], None]
    ) -> None:
        """Gives the candidate the traffic of the step that `state` is in. Raises as `Aliases.move`."""
        step = rollout.policy.steps[state.step]
        reason = f"rollout {rollout.rollout}: step {step.name}"

        def work(session: Session) -> None:
            also(session)
            self.notice(session, rollout, "next", [reason, *decision.reasons])

        self._place.index.aliases.move(
            lease,
            {CANARY: rollout.number},
            actor=self._actor,
            reason=reason,
            expected={CANARY: rollout.number, STABLE: rollout.stable},
            stages=self.stages(rollout.number, stage_of(step)),
            traffic=traffic_of(rollout.policy, step),
            also=work,
        )

    def promote(
        self, lease: RegistryLease, rollout: Rollout, decision: Decision, also: Callable[[Session], None]
    ) -> None:
        """Makes the candidate stable. Raises `RegistryError` where it is not as it was registered."""
        self.check_files(rollout.number)
        reason = decision.reasons[0]

        def work(session: Session) -> None:
            also(session)
            rollouts.in_phase(session, rollout, "promoted", reason)
            self.notice(session, rollout, "promoted", decision.reasons)

        self._place.index.aliases.move(
            lease,
            {STABLE: rollout.number, PREVIOUS: rollout.stable, CANARY: None},
            actor=self._actor,
            reason=f"rollout {rollout.rollout}: {reason}",
            expected={CANARY: rollout.number, STABLE: rollout.stable},
            stages=self.stages(rollout.number, "stable") | self.stages(rollout.stable, "retired"),
            traffic=TrafficChange(),
            also=work,
        )

    def end(
        self,
        lease: RegistryLease,
        rollout: Rollout,
        phase: Phase,
        reason: str,
        *,
        also: Callable[[Session], None] | None = None,
        leave_aliases: bool = False,
    ) -> None:
        """Takes all traffic from the candidate, in one transaction with the rollout's end."""

        def work(session: Session) -> None:
            if also is not None:
                also(session)
            rollouts.in_phase(session, rollout, phase, reason)
            self.notice(session, rollout, phase, [reason])

        aliases = self._place.index.aliases
        if leave_aliases:
            aliases.under(lease, work)
            return
        aliases.move(
            lease,
            {CANARY: None},
            actor=self._actor,
            reason=f"rollout {rollout.rollout}: {reason}"[:1000],
            stages=self.stages(rollout.number, _LAST_STAGE[phase]),
            traffic=TrafficChange(),
            also=work,
        )

    def check_files(self, number: int) -> None:
        """Raises `RegistryError` for an entry that is not as it was registered."""
        if problems := self._place.problems(number):
            raise RegistryError(f"entry {number} is not as it was registered: {'; '.join(problems)}"[:1000])

    def stages(self, number: int, stage: str) -> dict[int, str]:
        """The stage that an entry gets, where its present one lets it."""
        current = self._place.index.standing(self._place.namespace, number).stage
        return {number: stage} if stage in STAGES[current] else {}

    def notice(self, session: Session, rollout: Rollout, event: str, reasons: Sequence[str]) -> None:
        """Puts a message for the policy's webhooks into the transaction."""
        now_s = self._place.clock()
        body = {
            "event": event,
            "namespace": rollout.namespace,
            "rollout": rollout.rollout,
            "entry": rollout.number,
            "stable": rollout.stable,
            "step": rollout.policy.steps[rollout.state.step].name,
            "reasons": [reason[:500] for reason in reasons[:20]],
            "at_s": now_s,
        }
        rollouts.notify(session, rollout.policy, body, now_s)


def stage_of(step: StepPolicy) -> str:
    return "canary" if step.share else "shadow"


def traffic_of(policy: CanaryPolicy, step: StepPolicy) -> TrafficChange:
    share = policy.share_of(step)
    if not step.has_cohort:
        return TrafficChange(canary_share=share, shadow_share=step.shadow)
    return TrafficChange(step.traffic_share * share, 0.0, step.tenants, step.tenant_share, share)

"""One candidate from its start to its end, by the real controller on a real registry, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving_bridge.canary import (
    CANARY,
    LEASE_S,
    CanaryPolicy,
    Controller,
    MetricPolicy,
    Place,
    Rollout,
    Rollouts,
    StepPolicy,
    replay,
)
from serving_bridge.database import MEMORY, Database, migrate, open_database
from serving_bridge.registry import ENTRY_SCHEMA, REGISTRY, Cohort, Entry, Origin, RegistryIndex, TrafficSplit
from tools.testing.canary.kinds import Kind
from tools.testing.canary.traffic import ControllerKilled, Traffic

NAMESPACE = "default"
_EPOCH_S = 1.8e9
_INTERVAL_S = 600.0
#: Seeds of which every decision is computed again.
_REPLAY_EVERY = 5
#: A look comes at most so long after it is due: a killed controller's lease has to run out.
_LATE_S = LEASE_S + 1.0

#: The default steps and metrics, with more room for the length, and with what judges and users say.
POLICY = CanaryPolicy(
    interval_s=_INTERVAL_S,
    metrics=(
        *(
            MetricPolicy(name="length", margin=0.2) if metric.name == "length" else metric
            for metric in CanaryPolicy().metrics
        ),
        MetricPolicy(name="score.judge", margin=0.03, low=0.0, high=1.0, role="goal", coverage=0.2),
        MetricPolicy(name="thumbs_down", margin=0.03, coverage=0.0, per_tenant=False),
    ),
)


#: Whole tenants one after the other, the smallest first; then everybody.
BY_TENANTS = CanaryPolicy(
    interval_s=_INTERVAL_S,
    metrics=POLICY.metrics,
    steps=(
        POLICY.steps[0],
        StepPolicy(share=1.0, tenants=("d",), traffic=0.1, min_samples=200, min_time_s=1800.0),
        StepPolicy(share=1.0, tenants=("d", "c"), traffic=0.25, min_samples=1000, min_time_s=1800.0),
        StepPolicy(share=1.0, tenants=("d", "c", "b"), traffic=0.5, min_time_s=1800.0, proof="all"),
        POLICY.steps[-1],
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How one rollout ended.

    Attributes:
      phase: as `Rollout.phase`; `running` if it did not end in time.
      hours: of virtual time.
      step: in which it ended.
      looks: that were made; `deaths` of controllers beside them.
      late_s: from the first look with a reason to roll back to weight 0; None where there was none.
      metric: that ended it; "" for none.
      violations: what did not hold.
    """

    kind: str
    seed: int
    phase: str
    hours: float
    step: str
    looks: int
    deaths: int
    late_s: float | None
    metric: str
    reason: str
    violations: tuple[str, ...]


class _Clock:
    now_s = _EPOCH_S

    def __call__(self) -> float:
        return self.now_s


def roll_out(
    kind: Kind, seed: int, *, policy: CanaryPolicy | None = None, max_hours: float = 72.0, deaths: float = 0.01
) -> Outcome:
    """Runs one candidate. The same kind and seed give the same outcome."""
    rng = np.random.default_rng([seed, *kind.name.encode()])
    policy = policy or (BY_TENANTS if kind.by_tenants else POLICY)
    clock = _Clock()
    clock.now_s += float(rng.uniform(0, 86_400))
    began_s = clock.now_s
    database = open_database(MEMORY, schema=REGISTRY)
    try:
        place, controller = _started(database, kind, rng, clock, policy, deaths)
        violations, dead = _looked_after(place, controller, rng, clock, policy, began_s + 3600 * max_hours)
        (rollout,) = place.rollouts.latest(NAMESPACE)
        records = place.rollouts.decisions(rollout.rollout)
        worse_s = [one.created_s for one in records if any(f.is_worse for f in one.record.decision.findings)]
        is_off = not place.index.aliases.traffic(NAMESPACE).canary_share
        if seed % _REPLAY_EVERY == 0:  # it costs as much as the rollout did
            violations += replay(rollout, records)
        return Outcome(
            kind.name,
            seed,
            rollout.phase,
            (clock.now_s - began_s) / 3600,
            policy.steps[rollout.state.step].name,
            rollout.looks,
            dead,
            clock.now_s - worse_s[0] if worse_s and is_off else None,
            rollout.reason.split(" ")[0] if rollout.phase == "rolled_back" else "",
            rollout.reason,
            tuple(violations),
        )
    finally:
        database.close()


def _started(
    database: Database, kind: Kind, rng: np.random.Generator, clock: _Clock, policy: CanaryPolicy, deaths: float
) -> tuple[Place, Controller]:
    """A registry with a stable entry, and the rollout of a second one."""
    _migrated(database)
    index = RegistryIndex(database, clock=clock)
    stable, candidate = (_entry(index, clock) for _ in range(2))
    lease = index.aliases.take_lease(NAMESPACE, "person", 60)
    index.aliases.move(lease, {"stable": stable}, actor="person", reason="first")
    index.aliases.release_lease(lease)
    traffic = Traffic(kind, rng, lambda: _split(index), clock, deaths=deaths)
    place = Place(NAMESPACE, index, Rollouts(database), traffic, lambda number: [], clock)
    controller = Controller(place, holder="controller-0")
    controller.start(candidate, policy, actor="person", reason="simulated")
    return place, controller


def _looked_after(
    place: Place, controller: Controller, rng: np.random.Generator, clock: _Clock, policy: CanaryPolicy, end_s: float
) -> tuple[list[str], int]:
    """Looks until the rollout or the time is over; another controller follows one that dies.

    Returns:
      what did not agree after a look; controllers that died.
    """
    violations: list[str] = []
    dead = 0
    rollout = place.rollouts.open_one(NAMESPACE)
    while rollout is not None and rollout.is_open and clock.now_s < end_s:
        clock.now_s += policy.interval_s * float(rng.uniform(0.98, 1.02))
        try:
            rollout = controller.look()
        except ControllerKilled:
            dead += 1
            clock.now_s += _LATE_S
            controller = Controller(place, holder=f"controller-{dead}")
            continue
        assert rollout is not None
        violations += _disagreements(place.index, rollout)
    return violations, dead


def _split(index: RegistryIndex) -> tuple[TrafficSplit, Cohort | None]:
    """The split that gateways would deal out by, and to whom."""
    placement = index.aliases.placement(NAMESPACE)
    salt = "" if placement.canary is None else str(placement.canary.number)
    return placement.traffic, placement.traffic.cohort(salt)


def _migrated(database: Database) -> None:
    database.write(lambda session: migrate(session, database.name, CANARY))


def _disagreements(index: RegistryIndex, rollout: Rollout) -> list[str]:
    """What of alias, split and rollout does not say the same."""
    placement = index.aliases.placement(NAMESPACE)
    canary = placement.canary.number if placement.canary else None
    stable = placement.stable.number if placement.stable else None
    step, traffic = rollout.policy.steps[rollout.state.step], placement.traffic
    share, named = rollout.policy.share_of(step), (step.tenants, step.tenant_share)
    expected: tuple[object, ...] = (rollout.number, rollout.stable, share, step.shadow, named)
    if not rollout.is_open:
        promoted = rollout.phase == "promoted"
        expected = (None, rollout.number if promoted else rollout.stable, 0.0, 0.0, ((), 0.0))
    of_theirs = traffic.within if traffic.tenants or traffic.tenant_share else traffic.canary_share
    found = (canary, stable, of_theirs, traffic.shadow_share, (traffic.tenants, traffic.tenant_share))
    return [] if found == expected else [f"{rollout.phase}: aliases and split are {found}, expected {expected}"]


def _entry(index: RegistryIndex, clock: _Clock) -> int:
    """An entry without weights that has passed the evaluation gate."""

    def make(number: int, previous: str, now_s: float) -> Entry:
        return Entry(
            schema=ENTRY_SCHEMA,
            namespace=NAMESPACE,
            number=number,
            previous=previous,
            parent=None,
            origin=Origin("run", "simulated", number, number),
            content="ab" * 32,
            shape="cd" * 32,
            tokenizer="",
            weight_version=number,
            num_parameters=1,
            dtype="bfloat16",
            files=[],
            data=[],
            versions={},
            consent="",
            note="",
            actor="simulation",
            created_s=now_s,
        )

    number = index.add(NAMESPACE, make).number
    index.set_stage(NAMESPACE, number, "passed", actor="simulation", reason="simulated", unproven=True)
    return number

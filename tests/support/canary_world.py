"""A registry with two entries, observations of made-up answers, and a controller over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.canary import (
    CANARY,
    OBSERVATIONS,
    CanaryPolicy,
    Controller,
    LogSource,
    MetricPolicy,
    Observation,
    ObservationLog,
    Place,
    Rollouts,
    StepPolicy,
)
from serving_bridge.database import Database, open_database
from serving_bridge.gateway import Arms, split_of
from serving_bridge.registry import REGISTRY, RegistryIndex
from tests.support.queue_engines import Clock
from tests.support.registries import passed_entry

POLICY = CanaryPolicy(
    interval_s=60.0,
    max_hold_s=3600.0,
    holdout=0.3,
    metrics=(MetricPolicy(name="error", margin=0.1), MetricPolicy(name="ttft_s", margin=0.5, low=0.05, high=5.0)),
    steps=(
        StepPolicy(shadow=0.5, min_samples=20, min_time_s=60.0),
        StepPolicy(share=0.2, min_samples=20, min_time_s=60.0),
        StepPolicy(share=1.0, min_samples=50, min_time_s=60.0, proof="all"),
    ),
)
NAMESPACE = "default"


@dataclass
class CanaryWorld:
    """Two entries, the first of which is stable, on one engine.

    Attributes:
      errors: arm -> rate of errors of its answers.
      hurt: the only tenant that has errors; "" for all.
      problems: what the next check of files finds.
    """

    url: str
    observations: str
    clock: Clock = field(default_factory=Clock)
    errors: dict[str, float] = field(default_factory=lambda: {"canary": 0.0, "stable": 0.0})
    hurt: str = ""
    problems: list[str] = field(default_factory=list)
    opened: list[Database] = field(default_factory=list)
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def __post_init__(self) -> None:
        self.index = RegistryIndex(self._open(self.url, REGISTRY), clock=self.clock)
        self.rollouts = Rollouts(self._open(self.url, CANARY))
        self.log = ObservationLog(self._open(self.observations, OBSERVATIONS))
        self.stable, self.candidate = 1, 2

    @classmethod
    def of(cls, root: Path) -> CanaryWorld:
        """That of a registry's folder."""
        return cls(str(root / "index.sqlite"), str(root / "observations.sqlite"))

    def fill(self) -> None:
        """Adds the entries to an empty index."""
        self.stable = passed_entry(self.index)
        self.candidate = passed_entry(self.index, parent=self.stable)
        lease = self.index.aliases.take_lease(NAMESPACE, "ann", 60)
        self.index.aliases.move(lease, {"stable": self.stable}, actor="ann", reason="first")
        self.index.aliases.release_lease(lease)

    def place(self) -> Place:
        return Place(
            NAMESPACE, self.index, self.rollouts, LogSource(self.log), lambda number: list(self.problems), self.clock
        )

    def controller(self, name: str = "controller") -> Controller:
        return Controller(self.place(), holder=name)

    def start(self, controller: Controller | None = None, policy: CanaryPolicy = POLICY) -> Controller:
        controller = self.controller() if controller is None else controller
        controller.start(self.candidate, policy, actor="ann", reason="a test")
        return controller

    def answers(self, n: int = 400) -> None:
        """Adds the observations of `n` conversations, dealt out as the split says now."""
        arms = Arms(split_of(self.index.aliases.placement(NAMESPACE)))
        rows = []
        for number in range(n):
            arm = arms.of(self._talk(number), f"t{number % 2}")
            rows.append(self._row(arm, number, shadow=False))
            if arm == "stable" and arms.is_mirrored(self._talk(number)):
                rows.append(self._row("canary", number, shadow=True))
        self.log.add(rows)

    def _talk(self, number: int) -> str:
        return f"c{self.clock.now_s:.0f}-{number}"

    def _row(self, arm: str, number: int, *, shadow: bool) -> Observation:
        tenant = f"t{number % 2}"
        rate = self.errors[arm] if self.hurt in ("", tenant) else 0.0
        measures = {"error": float(self._rng.random() < rate), "ttft_s": float(self._rng.uniform(0.2, 0.4))}
        version = self.candidate if arm == "canary" else self.stable
        talk = self._talk(number)
        return Observation(NAMESPACE, "answer", arm, version, tenant, talk, measures, shadow, self.clock.now_s)

    def pass_time(self, seconds: float = 60.0, n: int = 400) -> None:
        """Traffic of an interval."""
        self.clock.now_s += seconds
        self.answers(n)

    def agreement(self) -> tuple[str | None, int | None, int | None, float, float]:
        """(phase of the newest rollout, canary, stable, canary share, shadow share)."""
        placement = self.index.aliases.placement(NAMESPACE)
        newest = self.rollouts.latest(NAMESPACE)
        return (
            newest[0].phase if newest else None,
            placement.canary.number if placement.canary else None,
            placement.stable.number if placement.stable else None,
            placement.traffic.canary_share,
            placement.traffic.shadow_share,
        )

    def stage(self, number: int) -> str:
        return self.index.standing(NAMESPACE, number).stage

    def _open(self, url: str, schema) -> Database:
        database = open_database(url, timeout_s=5, schema=schema)
        self.opened.append(database)
        return database

    def close(self) -> None:
        for database in self.opened:
            database.close()


@pytest.fixture
def canary_world(database_url: str) -> Iterator[CanaryWorld]:
    """A world on each engine."""
    world = CanaryWorld(database_url, database_url)
    world.fill()
    yield world
    world.close()

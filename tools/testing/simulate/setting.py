"""The run that a seed simulates: small, and in each seed configured another way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from serving_bridge.queue import Pace, QueueBounds
from serving_bridge.settings import RolloutSettings, ServingSettings

#: how often processes look around: more rarely than real ones, to make seeds cheap
LOOK_S = 0.15
#: how often a fleet looks for orders: nobody gives any
ORDERS_S = 2.0
MAX_MODEL_LEN = 16


@dataclass(frozen=True)
class LearnerPlan:
    """What the run asks of its learner; times are what things take."""

    steps: int
    groups_per_step: int
    max_staleness: int
    checkpoint_every: int
    max_wait_s: float
    train_s: float
    publish_s: Callable[[], float]


@dataclass(frozen=True)
class Setting:
    """What the run's configuration says; times are short, so that bounds are reached within seconds."""

    pace: Pace
    serving: ServingSettings
    rollout: RolloutSettings
    bounds: QueueBounds
    blob_bytes: int
    workers: tuple[str, ...]
    checkpoint_every: int
    lease_s: float
    keep_versions: int
    claim_lease_s: float = 4.0
    max_wait_s: float = 20.0


def draw_setting(draws: random.Random) -> Setting:
    """A configuration from the seed's randomness."""
    pace = Pace(max_staleness=draws.choice((0, 1, 1, 2)), groups_per_step=draws.choice((1, 2, 2, 3)), total_steps=4)
    replicas = draws.choice((1, 2, 2, 3))
    serving = ServingSettings(
        replicas=replicas,
        max_model_len=MAX_MODEL_LEN,
        start_timeout_s=5.0,
        update_timeout_s=3.0,
        updates_at_once=draws.choice((0, 1)),
        drain_timeout_s=1.0,
        health_interval_s=0.5,
        hang_s=2.5,
        max_restarts=1000,
        min_healthy=1,
        min_healthy_s=20.0,
        probe_tolerance=1e-3,
    )
    rollout = RolloutSettings(
        group_size=2,
        max_staleness=pace.max_staleness,
        max_prompt_tokens=4,
        max_tokens=3,
        concurrent_groups=draws.choice((2, 4)),
        segment_tokens=draws.choice((0, 0, 2)),
        spare_samples=draws.choice((0, 0, 1)),
        request_timeout_s=3.0,
        episode_timeout_s=10.0,
        max_wait_s=20.0,
        drain_s=1.0,
    )
    return Setting(
        pace=pace,
        serving=serving,
        rollout=rollout,
        bounds=QueueBounds(max_groups=draws.choice((2, 1000))),
        blob_bytes=draws.choice((1, 2**20)),
        workers=("worker-0", "worker-1")[: draws.choice((1, 2, 2))],
        lease_s=draws.choice((0.5, 30.0, 30.0)),
        keep_versions=draws.choice((2, 4)),
        checkpoint_every=draws.choice((1, 2, 2, 3)),
    )

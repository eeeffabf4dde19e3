"""Which faults a seed stands for: the same seed, the same plan."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from tools.testing.chaos.engines import ENGINES, EngineName
from tools.testing.chaos.wire import SIDES, WIRE_KINDS

Kind = Literal["kill", "crash", "stop", "wire", "engine", "clock", "full", "damage", "zombie", "redeliver"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: points of `learner_jax.runtime.crash_points` that every step passes, and those that every checkpoint passes
STEP_POINTS = ("leased", "trained", "storing", "stored", "published", "marked")
SAVE_POINTS = ("save", "saving", "hashed", "committed", "acknowledged")
#: those that the rollout worker passes with every group
WORKER_POINTS = ("claimed", "sampled", "put", "blob")
ROLES = ("learner", "worker", "controller", "engine")
DISKS = ("database", "weights", "checkpoints")
FILES = ("weights", "manifest", "registry", "checkpoint")
_JUMPS_S = (-7200.0, -30.0, -2.0, 2.0, 30.0, 7200.0)
#: seconds within which all faults of a seed begin, and which they last
_SPREAD_S, _SHORTEST_S, _LONGEST_S = 0.8, 0.3, 1.5


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
      target: whom, or what, it hits.
      how: in which way, where there are several.
      after_s: from the seed's beginning.
      lasts_s: until it is healed, where it does not heal by itself.
      amount: seconds of a clock's jump.
    """

    kind: Kind
    target: str = ""
    how: str = ""
    after_s: float = 0.0
    lasts_s: float = 0.0
    amount: float = 0.0

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.kind, self.target, self.how) if part)


def draw(seed: int, engine: EngineName) -> tuple[Fault, ...]:
    """One to three faults."""
    draws = random.Random(f"chaos {seed}")
    count = draws.choice((1, 1, 2, 2, 3))
    return tuple(_fault(kind, draws, engine) for kind in draws.sample(KINDS, count))


def _fault(kind: Kind, draws: random.Random, engine: EngineName) -> Fault:
    target, how, amount = _DRAWS[kind](draws, engine)
    return Fault(
        kind,
        target,
        how,
        after_s=round(draws.uniform(0.0, _SPREAD_S), 3),
        lasts_s=round(draws.uniform(_SHORTEST_S, _LONGEST_S), 3),
        amount=amount,
    )


_DRAWS: dict[Kind, Callable[[random.Random, EngineName], tuple[str, str, float]]] = {
    "kill": lambda d, e: (d.choice((*ROLES, "proxy", "engine_guard")), "", 0.0),
    "crash": lambda d, e: (
        *d.choice([("learner", p) for p in (*STEP_POINTS, *SAVE_POINTS)] + [("worker", p) for p in WORKER_POINTS]),
        0.0,
    ),
    "stop": lambda d, e: (d.choice(ROLES), "", 0.0),
    "wire": lambda d, e: (d.choice(SIDES), d.choice(WIRE_KINDS[1:]), 0.0),
    "engine": lambda d, e: ("engine", d.choice(ENGINES[e].disturbances), 0.0),
    "clock": lambda d, e: (d.choice(("all", "learner", "worker", "controller")), "", d.choice(_JUMPS_S)),
    "full": lambda d, e: (d.choice(DISKS), "", 0.0),
    "damage": lambda d, e: (d.choice(FILES), d.choice(("flip", "tear")), 0.0),
    "zombie": lambda d, e: (d.choice(("consumer", "learner")), "", 0.0),
    "redeliver": lambda d, e: ("groups", "", 0.0),
}

"""What one look at the traffic found, and what is remembered of all looks of a step."""

from __future__ import annotations

from typing import Literal

import msgspec

Arm = Literal["canary", "stable"]
ARMS: tuple[Arm, Arm] = ("canary", "stable")
#: Stands for all tenants together.
ALL = ""


class Cell(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """New values of a metric on the scale of `Measure.scaled`, one for each conversation.

    Attributes:
      tenant: "" for all tenants together.
      n, total, squares: how many values, their sum, and the sum of their squares.
    """

    metric: str
    arm: Arm
    tenant: str
    n: float
    total: float
    squares: float


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is new since the look before.

    Attributes:
      at_s: seconds since the epoch, by the clock of who looks.
      passed_s: seconds since the look before, by that clock; may be negative, or an hour, where the clock was set.
      until: of the observations, the last one that is in here.
      answers: of each arm, as (canary, stable).
      conversations: that these were of.
      dropped: observations that gateways could not write.
      covered: metric -> answers of (canary, stable) with a value.
      bars: metric of a tail -> the bar that this look's answers give for the next look.
      failure: why there are no observations; "" where there are.
      paused: whether somebody lets nothing go on for now.
    """

    at_s: float
    passed_s: float
    until: int
    answers: tuple[int, int] = (0, 0)
    conversations: tuple[int, int] = (0, 0)
    dropped: int = 0
    covered: dict[str, tuple[int, int]] = {}
    cells: list[Cell] = []
    bars: dict[str, float] = {}
    failure: str = ""
    paused: bool = False


class Kept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Sums of one metric, tenant and arm within a step; as `serving_bridge.canary.evidence.Sums`.

    Attributes:
      rank: when the tenant was first seen, 1 for the first; 0 for all tenants together.
    """

    metric: str
    arm: Arm
    tenant: str
    rank: int
    n: float
    total: float
    variation: float


class Uncovered(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Looks, answers of the canary, and how many of these had a value of a metric, since it was last enough."""

    looks: int = 0
    answers: int = 0
    covered: int = 0


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a rollout stands.

    Attributes:
      step: number of the policy's step, from 0.
      looks: of this step.
      spent_s: seconds of this step, as they are counted: never more than two intervals for a look.
      until: of the observations, the last one that was looked at.
      answers, conversations: of this step, as (canary, stable).
      blind: looks in a row without observations.
      silent: conversations that the canary should have had since its last one.
      uncovered: metric -> what is known of it since too few answers had a value.
      bars: metric of a tail -> bar of the next look.
      kept: of this step.
      reference: of stable in the step before: first guesses of this step's means.
    """

    step: int = 0
    looks: int = 0
    spent_s: float = 0.0
    until: int = 0
    answers: tuple[int, int] = (0, 0)
    conversations: tuple[int, int] = (0, 0)
    blind: int = 0
    silent: float = 0.0
    uncovered: dict[str, Uncovered] = {}
    bars: dict[str, float] = {}
    kept: list[Kept] = []
    reference: list[Kept] = []


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one metric: how much worse the canary is, as people read it (see `Measure.told`).

    Attributes:
      direction: 1 where more is worse, -1 where less is.
      n_canary, n_stable: values, one for each conversation and look.
      canary, stable: means on the metric's scale of 0 to 1.
      at_least: the canary is worse by at least this; what stops a rollout where it is above the margin.
      at_most: the canary is worse by at most this; what lets one go on where it is below the margin.
    """

    metric: str
    tenant: str
    direction: int
    n_canary: float
    n_stable: float
    canary: float | None
    stable: float | None
    margin: float
    at_least: float
    at_most: float
    is_worse: bool
    is_harmless: bool


Verdict = Literal["hold", "next", "success", "failure", "inconclusive"]


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What follows from a look.

    Attributes:
      verdict: `hold` stays, `next` goes to the next step, `success` makes the candidate stable, the others take all
        traffic from it.
      reasons: for people; the first is the weightiest.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    findings: list[Finding]

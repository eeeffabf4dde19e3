"""The checks of a gate on two models' results: what each criterion measured, and how it came out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serving_bridge.confidence import Calibration
from serving_bridge.safety import Checker
from serving_bridge.settings import SafetySettings
from tools.gating.calibration import believed, difference_bounds, error_bounds
from tools.gating.decisions import Bounds, Outcome, bounds_of, decide, found_with, stop_probability, worst
from tools.gating.errors import GateError
from tools.gating.judging import Judge, Pair
from tools.gating.measures import CALIBRATION, SHARES, Values, values_of
from tools.gating.settings import CheckSettings

#: a judge whose judgements can't be read more often than this says nothing
_MAX_UNREAD = 0.1


@dataclass(frozen=True)
class Terms:
    """What all checks of a gate share; as in `GateSettings`."""

    confidence: float
    rounds: int
    min_problems: int
    judge: Judge | None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Side:
    """One model's results by suite; each sample with what was measured of it under "measured", or None."""

    suites: Mapping[str, Mapping[str, Any]]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    identity: Mapping[str, Any]


def held(
    terms: Terms, check: CheckSettings, candidate: Side, stable: Side | None, retired: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The fields of a check in the report.

    Args:
      retired: suite -> problem -> why it does not count.

    Raises:
      GateError: a judge is asked for, and there is nobody to ask or to compare with.
    """
    gone = retired[check.suite]
    if check.metric == CALIBRATION:
        return calibration_held(terms, check, candidate, stable, gone)
    problems = candidate.suites[check.suite]["problems"]
    clusters = {problem["id"]: problem["cluster"] or problem["id"] for problem in problems}
    own, other = _values(terms, check, candidate, stable)
    own = {name: value for name, value in own.items() if name not in gone}
    criteria = [*_absolute(terms, check, own, clusters), *_relative(terms, check, own, other, clusters)]
    outcome, note, least = worst([one["outcome"] for one in criteria]), "", terms.min_problems
    is_compared = check.largest_regression is not None
    if len(own) < least:
        outcome, note = "fail", f"{len(own)} fresh problems have this metric, expected at least {least}"
    elif is_compared and stable is not None and (shared := len(own.keys() & other.keys())) < least:
        outcome, note = "fail", f"{shared} fresh problems have this metric in both, expected at least {least}"
    elif not criteria:
        outcome, note = "fail", "there is no stable version to compare with: give the check a minimum or maximum"
    elif is_compared and stable is None:
        note = "there is no stable version to compare with"
    elif check.metric == "judge" and terms.judge is not None and terms.judge.unread > _MAX_UNREAD * len(clusters):
        outcome, note = "fail", f"{terms.judge.unread} judgements can't be read"
    fields = {"suite": check.suite, "metric": check.metric, "better": check.direction, "outcome": outcome}
    return fields | {"note": note, "criteria": criteria}


def calibration_held(
    terms: Terms, check: CheckSettings, candidate: Side, stable: Side | None, gone: Collection[str]
) -> dict[str, Any]:
    """As `held`, of the expected calibration error, which is no mean over problems.

    A difference is of two errors, each at half of what the check may err.
    """
    problems = candidate.suites[check.suite]["problems"]
    clusters = {problem["id"]: problem["cluster"] or problem["id"] for problem in problems}
    sides = [
        [one for one in believed(side.samples[check.suite], terms.calibration) if one.problem not in gone]
        for side in (candidate, stable)
        if side is not None
    ]
    criteria: list[dict[str, Any]] = []
    counts = [len({one.problem for one in side}) for side in sides]
    outcome, note = "pass", ""
    if min(counts) < terms.min_problems:
        outcome, note = "fail", f"{min(counts)} fresh problems have this metric, expected at least {terms.min_problems}"
    else:
        bounds = error_bounds(sides[0], clusters, confidence=terms.confidence, looks=terms.rounds)
        for kind, limit, is_least in (("minimum", check.minimum, True), ("maximum", check.maximum, False)):
            if limit is not None:
                decided = decide(bounds, limit, is_least=is_least)
                criteria.append({"kind": kind, "limit": limit, "outcome": decided, **_told(bounds)})
        if (margin := check.largest_regression) is not None and len(sides) > 1:
            halved = (1 + terms.confidence) / 2
            own, other = (error_bounds(side, clusters, confidence=halved, looks=terms.rounds) for side in sides)
            difference = difference_bounds(own, other)
            decided = decide(difference, margin, is_least=False)
            criteria.append({"kind": "largest_regression", "limit": margin, "outcome": decided, **_told(difference)})
        outcome = worst([one["outcome"] for one in criteria])
        if not criteria:
            outcome, note = "fail", "there is no stable version to compare with: give the check a minimum or maximum"
    fields = {"suite": check.suite, "metric": check.metric, "better": check.direction, "outcome": outcome}
    return fields | {"note": note, "criteria": criteria}


def _values(terms: Terms, check: CheckSettings, candidate: Side, stable: Side | None) -> tuple[Values, Values]:
    if check.metric == "judge":
        if terms.judge is None or stable is None:
            raise GateError("the metric judge needs a [judge] table, its key and a stable version to compare with")
        return terms.judge.values(_pairs(candidate.samples[check.suite], stable.samples[check.suite])), {}
    checker = Checker(SafetySettings())
    sides = [
        {}
        if side is None
        else values_of(check.metric, side.suites[check.suite], side.samples[check.suite], checker, terms.calibration)
        for side in (candidate, stable)
    ]
    return sides[0], sides[1]


def _pairs(candidate: Sequence[Mapping[str, Any]], stable: Sequence[Mapping[str, Any]]) -> list[Pair]:
    others = {(sample["problem"], sample["sample"]): sample["answer"] for sample in stable}
    return [
        Pair(
            sample["problem"],
            "\n".join(message["content"] for message in sample["messages"]),
            sample["answer"],
            others[sample["problem"], sample["sample"]],
        )
        for sample in candidate
        if (sample["problem"], sample["sample"]) in others
    ]


def _absolute(terms: Terms, check: CheckSettings, own: Values, clusters: Mapping[str, str]) -> list[dict[str, Any]]:
    limits = [("minimum", check.minimum, True), ("maximum", check.maximum, False)]
    bounds = _bounds(terms, check, own, clusters)
    return [
        {"kind": kind, "limit": limit, "outcome": decide(bounds, limit, is_least=is_least), **_told(bounds)}
        for kind, limit, is_least in limits
        if limit is not None and bounds is not None
    ]


def _relative(
    terms: Terms, check: CheckSettings, own: Values, other: Values, clusters: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The difference on the problems of both, candidate less stable."""
    margin = check.largest_regression
    shared = {name: own[name] - other[name] for name in own if name in other}
    bounds = _bounds(terms, check, shared, clusters)
    if margin is None or bounds is None:
        return []
    outcomes: list[Outcome] = []
    if check.direction in ("higher", "same"):
        outcomes.append(decide(bounds, -margin, is_least=True))
    if check.direction in ("lower", "same"):
        outcomes.append(decide(bounds, margin, is_least=False))
    fields = {"kind": "largest_regression", "limit": margin, "outcome": worst(outcomes), **_told(bounds)}
    if bounds.error and bounds.num_clusters > 1:
        sure, looks = terms.confidence, terms.rounds
        fields |= {
            "stopped_with_80": found_with(0.8, margin, bounds.error, confidence=sure, looks=looks),
            "equal_is_stopped": stop_probability(0.0, margin, bounds.error, confidence=sure, looks=looks),
        }
    return [fields]


def _bounds(terms: Terms, check: CheckSettings, values: Values, clusters: Mapping[str, str]) -> Bounds | None:
    if not values:
        return None
    is_share = check.metric.partition("@")[0] in SHARES or all(-1 <= value <= 1 for value in values.values())
    return bounds_of(
        list(values.values()),
        [clusters[name] for name in values],
        confidence=terms.confidence,
        looks=terms.rounds,
        spread=1.0 if is_share else 0.0,
    )


def _told(bounds: Bounds) -> dict[str, Any]:
    """Without infinities, which JSON has not."""
    if bounds.num_clusters < 2:
        return {"value": bounds.value, "low": None, "high": None, "error": None, "num_problems": bounds.num_problems}
    fields = asdict(bounds)
    del fields["num_clusters"]
    return fields

"""The rules of a rollout: a policy, what is remembered and a new look give what is remembered next, and a decision.

Nothing here reads a clock, a file or a database, so that every decision can be computed again.

Error rates. `alpha` is divided by the steps, the metrics and their directions. Half of each share is for all tenants
together, half for single tenants: the tenant that is seen as the j-th gets 1/(j(j+1)) of it, which sums to 1. Each
comparison is a difference of two bounds at half its share. By the union bound a candidate that is within all margins is
rolled back for any metric, at any look, in any step, with a probability of at most `alpha`. Going on needs every metric
to be shown harmless, each at `beta`: an intersection-union test needs no further division (Berger 1982).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from serving_bridge.canary.evidence import Kind, Sums, lower_bounds, upper_bounds
from serving_bridge.canary.looks import ALL, Arm, Decision, Finding, Kept, Look, State, Uncovered, Verdict
from serving_bridge.canary.policy import CanaryPolicy, MetricPolicy, StepPolicy

#: Tenants whose comparisons are kept; later ones count among all tenants only.
MAX_TENANTS = 200
#: A canary that should have had so many conversations and had none is silent: exp(-30) by chance.
_SILENT = 30.0
#: Fewer dropped observations in a look say nothing.
_MIN_DROPPED = 30
_UNCOVERED_LOOKS = 2
#: Chance that a metric with just enough values is taken for missing.
_MISSING_LEVEL = 1e-6
#: Part of alpha that is for the share of conversations.
_BALANCE_PART = 0.05
_NOTHING = Sums()

_Key = tuple[str, Arm, str]


def decide(policy: CanaryPolicy, before: State, look: Look) -> tuple[State, Decision]:
    """The state after a look, and what to do. A state after `next` is that of the new step."""
    step = policy.steps[before.step]
    state = _taken(policy, step, before, look)
    findings = compare(policy, state)
    verdict, reasons = _verdict(policy, step, state, look, findings)
    decision = Decision(verdict, tuple(reasons), findings)
    return (_advanced(state) if verdict == "next" else state), decision


def compare(policy: CanaryPolicy, state: State) -> list[Finding]:
    """What is known of each metric and tenant of which both arms have values."""
    kept = _by_key(state.kept)
    metrics = {metric.name: metric for metric in policy.metrics}
    pairs = [
        _Pair(metrics[name], direction, tenant, canary, stable, _alpha(policy, metrics[name], canary.rank))
        for (name, arm, tenant), canary in sorted(kept.items())
        if arm == "canary" and (stable := kept.get((name, "stable", tenant))) is not None
        for direction in metrics[name].directions
    ]
    found = []
    for kind in ("rate", "mean"):
        found += _findings(kind, [pair for pair in pairs if pair.metric.measure.kind == kind], policy.beta)
    return sorted(found, key=lambda finding: (finding.tenant, finding.metric, finding.direction))


@dataclass(frozen=True)
class _Pair:
    metric: MetricPolicy
    direction: int
    tenant: str
    canary: Kept
    stable: Kept
    alpha: float


def _alpha(policy: CanaryPolicy, metric: MetricPolicy, rank: int) -> float:
    """The share of alpha of one comparison; `rank` 0 is of all tenants together."""
    share = policy.alpha * (1 - _BALANCE_PART) / (len(policy.steps) * len(policy.metrics) * len(metric.directions))
    if not metric.per_tenant:
        return share
    return share / 2 if rank == 0 else share / 2 / (rank * (rank + 1))


def _findings(kind: Kind, pairs: list[_Pair], beta: float) -> list[Finding]:
    if not pairs:
        return []
    least, most = _worsening(kind, pairs, beta)
    return [_finding(pair, float(low), float(high)) for pair, low, high in zip(pairs, least, most, strict=True)]


def _worsening(kind: Kind, pairs: list[_Pair], beta: float) -> tuple[np.ndarray, np.ndarray]:
    """By how much each pair's canary is worse: at least (error `alpha` of the pair), and at most (error `beta`).

    Where more is worse, "at least" is the canary's lower bound less stable's upper one. Where less is worse, values are
    looked at as 1 - x, and the same holds.
    """
    sums = np.array([[_facing(one, pair.direction) for pair in pairs for one in (pair.canary, pair.stable)]])
    n, total, variation = sums.reshape(len(pairs), 2, 3).transpose(2, 1, 0)
    alpha = np.array([pair.alpha for pair in pairs])
    levels = np.stack([alpha, alpha, np.full_like(alpha, beta), np.full_like(alpha, beta)]) / 2
    order = [0, 1, 0, 1]
    below = np.array([[True], [False], [False], [True]])
    facing = np.where(below, total[order], (n - total)[order])
    bounds = lower_bounds(kind, n[order], facing, variation[order], levels)
    low_canary, high_stable, high_canary, low_stable = np.where(below, bounds, 1 - bounds)
    return low_canary - high_stable, high_canary - low_stable


def _facing(kept: Kept, direction: int) -> tuple[float, float, float]:
    return kept.n, kept.total if direction > 0 else kept.n - kept.total, kept.variation


def _finding(pair: _Pair, least: float, most: float) -> Finding:
    margin, told = pair.metric.margin_scaled, pair.metric.measure.told
    return Finding(
        metric=pair.metric.name,
        tenant=pair.tenant,
        direction=pair.direction,
        n_canary=pair.canary.n,
        n_stable=pair.stable.n,
        canary=pair.canary.total / pair.canary.n if pair.canary.n else None,
        stable=pair.stable.total / pair.stable.n if pair.stable.n else None,
        margin=0.0 if pair.metric.measure.tail_of else pair.metric.margin,
        at_least=told(least),
        at_most=told(most),
        is_worse=least > margin,
        is_harmless=most < margin,
    )


def _taken(policy: CanaryPolicy, step: StepPolicy, state: State, look: Look) -> State:
    """The state with a look's values in it, before anything is decided."""
    spent_s = state.spent_s + (0.0 if look.paused else min(max(look.passed_s, 0.0), 2 * policy.interval_s))
    if look.failure:
        return _changed(state, looks=state.looks + 1, spent_s=spent_s, blind=state.blind + 1)
    answers = (state.answers[0] + look.answers[0], state.answers[1] + look.answers[1])
    conversations = (state.conversations[0] + look.conversations[0], state.conversations[1] + look.conversations[1])
    return _changed(
        state,
        looks=state.looks + 1,
        spent_s=spent_s,
        until=look.until,
        answers=answers,
        conversations=conversations,
        blind=0,
        silent=0.0 if look.conversations[0] else state.silent + _expected(policy, step, look.conversations[1]),
        uncovered=_uncovered(policy, step, state, look),
        bars=state.bars | look.bars,
        kept=_summed(state, look),
    )


def _expected(policy: CanaryPolicy, step: StepPolicy, stable: int) -> float:
    """Conversations that the canary should have had beside so many of stable."""
    share = policy.share_of(step)
    return stable * share / (1 - share) if share else stable * step.shadow


def _uncovered(policy: CanaryPolicy, step: StepPolicy, state: State, look: Look) -> dict[str, Uncovered]:
    """Metrics of which too few answers had a value since it was last enough."""
    found = {}
    for metric in policy.metrics:
        if _is_expected(metric, step):
            old = state.uncovered.get(metric.name, Uncovered())
            covered = old.covered + look.covered.get(metric.name, (0, 0))[0]
            new = Uncovered(old.looks + bool(look.answers[0]), old.answers + look.answers[0], covered)
            if new.covered < metric.coverage * new.answers:
                found[metric.name] = new
    return found


def _is_missing(metric: MetricPolicy, seen: Uncovered) -> bool:
    """Whether the share of answers with a value is below `coverage`; values may come a look later than answers."""
    n, covered = np.array([float(seen.answers)]), np.array([float(seen.covered)])
    most = upper_bounds("rate", n, covered, covered, np.array([_MISSING_LEVEL]))[0]
    return seen.looks >= _UNCOVERED_LOOKS and bool(most < metric.coverage)


def _is_expected(metric: MetricPolicy, step: StepPolicy) -> bool:
    return metric.coverage > 0 and (step.share > 0 or metric.measure.in_shadow)


def _summed(state: State, look: Look) -> list[Kept]:
    kept = _by_key(state.kept)
    ranks = {one.tenant: one.rank for one in state.kept}
    for cell in look.cells:
        if cell.tenant not in ranks:
            rank = sum(1 for tenant in ranks if tenant != ALL) + 1
            if cell.tenant != ALL and rank > MAX_TENANTS:
                continue
            ranks[cell.tenant] = 0 if cell.tenant == ALL else rank
        key = (cell.metric, cell.arm, cell.tenant)
        old = kept.get(key)
        sums = Sums(old.n, old.total, old.variation) if old is not None else _NOTHING
        guess = sums.mean if sums.n else _guess(state, key)
        new = sums.plus(cell.n, cell.total, cell.squares, guess=guess)
        kept[key] = Kept(*key, ranks[cell.tenant], new.n, new.total, new.variation)
    return [kept[key] for key in sorted(kept)]


def _guess(state: State, key: _Key) -> float:
    """A mean that was known before this step's first values: that of stable in the step before."""
    for one in state.reference:
        if (one.metric, one.tenant) == (key[0], key[2]) and one.n:
            return one.total / one.n
    return 0.5


def _verdict(
    policy: CanaryPolicy, step: StepPolicy, state: State, look: Look, findings: list[Finding]
) -> tuple[Verdict, list[str]]:
    if failures := [*_missing(policy, step, state, look), *map(_worse, (one for one in findings if one.is_worse))]:
        return "failure", failures
    waits = list(_waits(policy, step, state, look, findings))
    if not waits:
        last = state.step == len(policy.steps) - 1
        return ("success", [f"all that step {step.name} asks for is there"]) if last else ("next", ["all is there"])
    if state.spent_s > policy.max_hold_s:
        return "inconclusive", [f"step {step.name} has taken {state.spent_s:.0f} s, max_hold_s is over", *waits]
    return "hold", waits


def _missing(policy: CanaryPolicy, step: StepPolicy, state: State, look: Look) -> Iterable[str]:
    """Why a rollout can't be judged any more: no candidate goes on unseen."""
    if state.blind >= policy.max_blind_looks:
        yield f"no observations in {state.blind} looks in a row: {look.failure}"
    if state.silent > _SILENT:
        yield f"no answers of the canary where about {state.silent:.0f} conversations were to be"
    for metric in policy.metrics:
        seen = state.uncovered.get(metric.name)
        if seen is not None and _is_missing(metric, seen):
            yield (
                f"{metric.name} is missing: {seen.covered} of {seen.answers} answers of the canary had it in the last "
                f"{seen.looks} looks, coverage is {metric.coverage:g}"
            )
    if look.dropped > policy.max_dropped * (sum(look.answers) + look.dropped) and look.dropped > _MIN_DROPPED:
        yield f"{look.dropped} observations were dropped beside {sum(look.answers)}: more than max_dropped"
    if step.share and sum(state.conversations) > 0:
        _, most = _balance(policy, state)
        share = policy.share_of(step)
        if most < share * (1 - policy.balance):
            yield f"at most {most:.2%} of the conversations were the canary's, and {share:.2%} were to be"


def _balance(policy: CanaryPolicy, state: State) -> tuple[float, float]:
    """The canary's share of the conversations: at least (error `beta`), and at most (its part of `alpha`)."""
    n, total = (np.array([float(value)]) for value in (sum(state.conversations), state.conversations[0]))
    level = np.array([policy.alpha * _BALANCE_PART / len(policy.steps)])
    least = lower_bounds("rate", n, total, total, np.array([policy.beta]))[0]
    return float(least), float(upper_bounds("rate", n, total, total, level)[0])


def _worse(finding: Finding) -> str:
    of = f" for tenant {finding.tenant}" if finding.tenant else ""
    than = "more" if finding.direction > 0 else "less"
    return (
        f"{finding.metric}{of} is worse: {than} by at least {finding.at_least:.4g}, margin {finding.margin:.4g} "
        f"({finding.n_canary:.0f} values against {finding.n_stable:.0f})"
    )


def _waits(policy: CanaryPolicy, step: StepPolicy, state: State, look: Look, findings: list[Finding]) -> Iterable[str]:
    """What a step still needs."""
    if look.paused:
        yield "it is paused"
    if look.failure:
        yield f"there are no observations now: {look.failure}"
    if not 0 <= look.passed_s <= 3 * policy.interval_s and state.looks > 1:
        yield f"the clock moved by {look.passed_s:.0f} s between two looks, interval_s is {policy.interval_s:g}"
    if state.spent_s < step.min_time_s:
        yield f"{state.spent_s:.0f} s of {step.min_time_s:.0f}"
    if state.conversations[0] < step.min_samples:
        yield f"{state.conversations[0]} of {step.min_samples} conversations"
    if step.proof == "all" and step.share:
        share = policy.share_of(step)
        if (least := _balance(policy, state)[0]) < share * (1 - policy.balance):
            yield f"at least {least:.2%} of the conversations were the canary's, and {share:.2%} were to be"
    pooled = {(one.metric, one.direction): one for one in findings if one.tenant == ALL}
    for metric in policy.metrics:
        if not _is_expected(metric, step):
            continue
        for direction in metric.directions:
            yield from _metric_waits(metric, step, pooled.get((metric.name, direction)))


def _metric_waits(metric: MetricPolicy, step: StepPolicy, finding: Finding | None) -> Iterable[str]:
    needed = max(metric.min_samples, 1)
    if finding is None or finding.n_canary < needed:
        yield f"{metric.name}: {finding.n_canary if finding else 0:.0f} of {needed} values"
    elif not finding.is_harmless and (step.proof == "all" or (step.proof == "goals" and metric.role == "goal")):
        yield f"{metric.name}: worse by at most {finding.at_most:.4g}, margin {finding.margin:.4g}"


def _advanced(state: State) -> State:
    """The state at the beginning of the next step."""
    stable = [one for one in state.kept if one.arm == "stable"]
    return State(step=state.step + 1, until=state.until, bars=state.bars, reference=stable)


def _by_key(kept: Iterable[Kept]) -> dict[_Key, Kept]:
    return {(one.metric, one.arm, one.tenant): one for one in kept}


def _changed(state: State, **changes: object) -> State:
    fields: Mapping[str, object] = {name: getattr(state, name) for name in State.__struct_fields__}
    return State(**{**fields, **changes})  # type: ignore[arg-type]

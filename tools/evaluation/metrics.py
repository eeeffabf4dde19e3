"""The metrics of a suite, each a mean over problems with its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tools.evaluation.estimators import maj_at_k, pass_at_k
from tools.evaluation.intervals import Estimate, mean_interval
from tools.evaluation.judged import Judged
from tools.evaluation.suites import SuiteSettings

#: Of what a metric's numbers are: shares lie in [0, 1].
UNITS = {
    "mean_score": "score",
    "tokens": "tokens",
    "characters": "characters",
    "turns": "turns",
    "truncated": "share",
    "refused": "share",
    "format_errors": "share",
}


@dataclass(frozen=True)
class ProblemSamples:
    """All samples of a problem, in the order of their numbers."""

    id: str
    cluster: str
    samples: Sequence[Judged]

    @property
    def judged(self) -> list[Judged]:
        return [one for one in self.samples if one.score is not None]


def unit_of(metric: str) -> str:
    """share, score, tokens, characters or turns."""
    return UNITS.get(metric, "share")


def per_problem(metric: str, problem: ProblemSamples) -> float | None:
    """The metric's number for one problem; None where it has none."""
    name, _, k = metric.partition("@")
    match name:
        case "pass" | "maj":
            return _at_k(name, problem.judged, int(k))
        case "mean_score":
            return _mean([one.score for one in problem.judged if one.score is not None])
        case "tokens":
            counts = [one.num_tokens for one in problem.samples if one.num_tokens is not None]
            return _mean([float(count) for count in counts]) if len(counts) == len(problem.samples) else None
        case "characters":
            return _mean([float(len(one.answer)) for one in problem.samples])
        case "turns":
            return _mean([float(one.turns) for one in problem.judged])
        case "truncated":
            return _mean([float(one.finish_reason == "length") for one in problem.samples])
        case "refused":
            return _mean([float(one.refused) for one in problem.samples])
        case "format_errors":
            formed = [one.well_formed for one in problem.samples if one.well_formed is not None]
            return _mean([float(not good) for good in formed])
    raise ValueError(f"unknown metric {metric!r}")


def metric_names(settings: SuiteSettings) -> list[str]:
    """The metrics of a suite in the order in which they are shown."""
    names = [f"pass@{k}" for k in settings.ks] + [f"maj@{k}" for k in settings.ks if k > 1]
    names += ["mean_score", "tokens", "characters", "truncated", "refused"]
    if settings.is_dialog:
        names.append("turns")
    return [*names, "format_errors"] if settings.format else names


def by_turns(samples: Sequence[Judged]) -> list[dict[str, float]]:
    """Judged samples by their number of turns: how many, mean score, and the share that passed."""
    found: dict[int, list[Judged]] = {}
    for one in samples:
        if one.score is not None:
            found.setdefault(one.turns, []).append(one)
    return [
        {
            "turns": turns,
            "samples": len(some),
            "mean_score": math.fsum(one.score or 0.0 for one in some) / len(some),
            "passed": sum(one.passed for one in some) / len(some),
        }
        for turns, some in sorted(found.items())
    ]


def metrics(settings: SuiteSettings, problems: Sequence[ProblemSamples]) -> dict[str, Estimate]:
    """Every metric of the suite; over no problem where none has it."""
    has_clusters = any(problem.cluster for problem in problems)
    return {
        name: _estimate(lambda problem, name=name: per_problem(name, problem), problems, name, has_clusters)  # type: ignore[misc]
        for name in metric_names(settings)
    }


def _estimate(
    number: Callable[[ProblemSamples], float | None],
    problems: Sequence[ProblemSamples],
    name: str,
    has_clusters: bool,
) -> Estimate:
    found = [(value, problem.cluster) for problem in problems if (value := number(problem)) is not None]
    clusters = [cluster for _, cluster in found] if has_clusters else None
    return mean_interval([value for value, _ in found], clusters, share=unit_of(name) == "share")


def notes(problems: Sequence[ProblemSamples], given: Mapping[str, Estimate]) -> list[str]:
    """What a reader of the figures must know, a sentence each."""
    samples = [one for problem in problems for one in problem.samples]
    unjudged = [one for one in samples if one.score is None]
    found = []
    if unjudged:
        first = unjudged[0]
        why = f"problem {first.problem}, sample {first.sample}: {first.verdict}: {'; '.join(first.reasons)}"
        found.append(
            f"{len(unjudged)} of {len(samples)} answers have no verdict and count neither as right nor as wrong "
            f"({why[:300]})"
        )
    if short := [name for name, one in given.items() if 0 < one.num_problems < len(problems)]:
        found.append(f"{', '.join(short)}: over fewer than all {len(problems)} problems, for want of judged answers")
    truncated = sum(one.finish_reason == "length" for one in samples)
    if truncated > 0.1 * len(samples):
        found.append(f"{truncated} of {len(samples)} answers were cut at sampling.max_tokens: raise it to be fair")
    clusters = given["mean_score"].num_clusters
    if 0 < clusters < 30:
        found.append(f"{clusters} problems or clusters are few: the intervals are rough")
    return found


def _at_k(name: str, judged: Sequence[Judged], k: int) -> float | None:
    if len(judged) < k:
        return None
    passed = [one.passed for one in judged]
    if name == "pass":
        return pass_at_k(len(passed), sum(passed), k)
    return maj_at_k([one.vote for one in judged], passed, k)


def _mean(numbers: Sequence[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None

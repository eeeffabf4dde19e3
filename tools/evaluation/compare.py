"""Two results side by side: each suite of both, problem by problem, and whether the difference is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner_jax.runtime import printable
from tools.evaluation.errors import ResultError
from tools.evaluation.estimators import pass_at_k
from tools.evaluation.paired import Difference, Flips, mcnemar, paired_difference
from tools.evaluation.shown import TITLES, shown

_MAX_LISTED = 20


@dataclass(frozen=True)
class SuiteComparison:
    """One suite in two results, over the problems of both.

    Attributes:
      first, second: value of each metric, over the problems that have it in both.
      differences: by metric, the second less the first.
      lost, gained: ids of problems that pass only in the first, or only in the second.
      notes: what a reader must know, a sentence each.
    """

    name: str
    num_problems: int
    first: Mapping[str, float]
    second: Mapping[str, float]
    units: Mapping[str, str]
    differences: Mapping[str, Difference]
    flips: Flips
    lost: Sequence[str]
    gained: Sequence[str]
    notes: Sequence[str]

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[SuiteComparison]:
    """Every suite that both results have.

    Raises:
      ResultError: they have none, or no problem in common.
    """
    others = {suite["name"]: suite for suite in second["suites"]}
    found = [_compared(suite, others[suite["name"]]) for suite in first["suites"] if suite["name"] in others]
    if not found:
        names = [", ".join(suite["name"] for suite in tree["suites"]) or "none" for tree in (first, second)]
        raise ResultError(f"the results have no suite in common: the first has {names[0]}, the second {names[1]}")
    return found


def _compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> SuiteComparison:
    others = {problem["id"]: problem for problem in second["problems"]}
    pairs = [
        (problem, others[problem["id"]])
        for problem in first["problems"]
        if problem["id"] in others and others[problem["id"]]["prompt_hash"] == problem["prompt_hash"]
    ]
    if not pairs:
        raise ResultError(f"suite {first['name']}: no problem has the same id and prompt in both results")
    values: dict[str, tuple[list[float], list[float], list[str]]] = {}
    for name, number in _metrics(first, second).items():
        both = [(number(a), number(b), a["cluster"]) for a, b in pairs]
        kept = [(x, y, cluster) for x, y, cluster in both if x is not None and y is not None]
        if kept:
            values[name] = ([x for x, _, _ in kept], [y for _, y, _ in kept], [c for _, _, c in kept])
    differences = {
        name: paired_difference(x, y, clusters if any(clusters) else None) for name, (x, y, clusters) in values.items()
    }
    lost, gained = _flipped(pairs)
    return SuiteComparison(
        name=first["name"],
        num_problems=len(pairs),
        first={name: sum(x) / len(x) for name, (x, _, _) in values.items()},
        second={name: sum(y) / len(y) for name, (_, y, _) in values.items()},
        units={name: first["metrics"][name]["unit"] for name in values},
        differences=differences,
        flips=mcnemar(len(lost), len(gained)),
        lost=lost,
        gained=gained,
        notes=_notes(first, second, len(pairs)),
    )


def _flipped(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[list[str], list[str]]:
    passed = [(a["id"], _passes(a), _passes(b)) for a, b in pairs]
    lost = [name for name, before, after in passed if before and after is False]
    gained = [name for name, before, after in passed if before is False and after]
    return lost, gained


def _judged(problem: Mapping[str, Any]) -> list[bool]:
    return [
        verdict == "pass"
        for verdict, score in zip(problem["verdicts"], problem["scores"], strict=True)
        if score is not None
    ]


def _passes(problem: Mapping[str, Any]) -> bool | None:
    """Whether at least half of the judged samples pass; None where none was judged."""
    judged = _judged(problem)
    return 2 * sum(judged) >= len(judged) if judged else None


def _mean(numbers: Sequence[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None


def _tokens(problem: Mapping[str, Any]) -> float | None:
    return None if None in problem["tokens"] else _mean(problem["tokens"])


def _mean_score(problem: Mapping[str, Any]) -> float | None:
    return _mean([score for score in problem["scores"] if score is not None])


def _truncated(problem: Mapping[str, Any]) -> float | None:
    return _mean([float(reason == "length") for reason in problem["finish_reasons"]])


def _refused(problem: Mapping[str, Any]) -> float | None:
    return _mean([float(refused) for refused in problem["refused"]])


def _format_errors(problem: Mapping[str, Any]) -> float | None:
    return _mean([float(not good) for good in problem["well_formed"] if good is not None])


def _pass_at(k: int, problem: Mapping[str, Any]) -> float | None:
    judged = _judged(problem)
    return pass_at_k(len(judged), sum(judged), k) if len(judged) >= k else None


def problem_number(metric: str) -> Callable[[Any], float | None] | None:
    """What gives a metric's number for one problem of results.json; None for a metric that it does not tell."""
    if k := _k_of(metric):
        return partial(_pass_at, k)
    return _METRICS.get(metric)


def _metrics(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Callable[[Any], float | None]]:
    """The metrics of both that can be told from results.json: majorities would need the answers."""
    names = [name for name in first["metrics"] if name in second["metrics"]]
    found = {f"pass@{k}": partial(_pass_at, k) for name in names if (k := _k_of(name))}
    return found | {name: _METRICS[name] for name in names if name in _METRICS}


def _k_of(name: str) -> int:
    """The k of pass@k; 0 for other metrics."""
    return int(name.removeprefix("pass@")) if name.startswith("pass@") else 0


#: Metric -> its number for one problem of results.json.
_METRICS: dict[str, Callable[[Any], float | None]] = {
    "mean_score": _mean_score,
    "tokens": _tokens,
    "truncated": _truncated,
    "refused": _refused,
    "format_errors": _format_errors,
}


def _notes(first: Mapping[str, Any], second: Mapping[str, Any], common: int) -> list[str]:
    found = []
    numbers = [len(suite["problems"]) for suite in (first, second)]
    if numbers != [common, common]:
        found.append(
            f"{common} problems have the same id and prompt in both results, of {numbers[0]} in the first and "
            f"{numbers[1]} in the second; the others are left out"
        )
    found += [
        f"{key} differs: {first[key]} in the first, {second[key]} in the second"
        for key in ("scorer", "sampling", "samples")
        if first[key] != second[key]
    ]
    if first["hash"] != second["hash"] and not found:
        found.append("the suites differ in settings or references: the results were not measured alike")
    return found


def print_comparison(
    first: Mapping[str, Any], second: Mapping[str, Any], found: Sequence[SuiteComparison], console: Console
) -> None:
    """One table for each suite, the problems that flipped, and notes."""
    for which, tree in (("A", first), ("B", second)):
        model = tree["model"]
        console.print(
            f"{which}: {printable(model['name'])} ({model['kind']}, {model['hash'][:12]})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for suite in found:
        title = escape(f"{suite.name}: {suite.num_problems} problems in both")
        table = Table(
            "metric",
            "A",
            "B",
            "B - A",
            "95% interval",
            "p",
            "least detectable",
            box=None,
            title=title,
            title_justify="left",
        )
        for name, difference in suite.differences.items():
            table.add_row(TITLES.get(name, name), *_row(suite, name, difference))
        console.print(table)
        for text in _sentences(suite):
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _row(suite: SuiteComparison, name: str, difference: Difference) -> list[str]:
    unit, estimate = suite.units[name], difference.estimate
    none = estimate.low is None
    between = (
        "n/a" if none else f"{shown(estimate.low, unit, signed=True)} to {shown(estimate.high, unit, signed=True)}"
    )
    return [
        shown(suite.first[name], unit),
        shown(suite.second[name], unit),
        shown(estimate.value, unit, signed=True),
        between,
        "n/a" if difference.p_value is None else _p(difference.p_value),
        shown(difference.minimum_detectable, unit),
    ]


def _p(value: float, *, equals: str = "") -> str:
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def _sentences(suite: SuiteComparison) -> list[str]:
    flips = suite.flips
    said = [
        f"flipped: {flips.num_lost} problems pass in A only, {flips.num_gained} in B only (McNemar's exact test, "
        f"p {_p(flips.p_value, equals='= ')})"
    ]
    for which, names in (("A", suite.lost), ("B", suite.gained)):
        if names:
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            said.append(f"pass in {which} only: {', '.join(names[:_MAX_LISTED])}{more}")
    return [*said, *(f"note: {note}" for note in suite.notes)]

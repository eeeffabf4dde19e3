"""The page of a result: `report.html`, one self-contained file, in which everything from a model is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from learner_jax.runtime import SHARED_MODE, write_whole
from tools.evaluation.charts import suite_charts
from tools.evaluation.results import SCORED, read_results, read_samples
from tools.evaluation.shown import TITLES, interval, number, shown
from tools.reporting import page as reports

REPORT, _TIMING = "report.html", "timing.json"
_SHOWN_ANSWERS = 8
_MAX_CHARACTERS = 6000


def write_page(folder: Path) -> Path:
    """Writes the page of a result's folder and returns its path.

    Raises:
      ResultError: the folder holds no result.
    """
    tree, samples = read_results(folder), read_samples(folder)
    by_suite: dict[str, list[dict[str, Any]]] = {suite["name"]: [] for suite in tree["suites"]}
    for sample in samples:
        by_suite.get(sample["suite"], []).append(sample)
    environment = reports.page_environment()
    environment.filters |= {"metric": lambda metric: shown(metric["value"], metric["unit"]), "interval": interval}
    environment.filters |= {"over": number, "cut": _cut}
    page = environment.get_template("evaluation.html").render(
        model=tree["model"],
        suites=[_suite(suite, by_suite[suite["name"]]) for suite in tree["suites"]],
        titles=TITLES,
        timing=_timing(folder),
        scored=SCORED,
        versions=reports.installed_versions(),
    )
    path = folder / REPORT
    write_whole(path, page, mode=SHARED_MODE)
    return path


def _suite(suite: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metrics = suite["metrics"]
    scores = {score for problem in suite["problems"] for score in problem["scores"] if score is not None}
    headline = "pass@1" if scores <= {0.0, 1.0} and "pass@1" in metrics else "mean_score"
    return {
        **suite,
        "headline": headline,
        "charts": suite_charts(suite),
        "pairs": extremes(samples, _SHOWN_ANSWERS),
        "unjudged": [one for one in samples if one["score"] is None][:_SHOWN_ANSWERS],
    }


def extremes(
    samples: Sequence[Mapping[str, Any]], number: int
) -> list[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]:
    """(worst, best) answers side by side: one of each problem at most, and none in both columns."""
    judged = [one for one in samples if one["score"] is not None]
    order = sorted(range(len(judged)), key=lambda i: (judged[i]["score"], i))
    number = min(number, (len({one["problem"] for one in judged}) + 1) // 2)
    worst = _one_of_each([judged[i] for i in order], number, besides=())
    best = _one_of_each([judged[i] for i in reversed(order)], number, besides=worst)
    return list(zip_longest(worst, best))


def _one_of_each(
    samples: Sequence[Mapping[str, Any]], number: int, *, besides: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    taken = {one["problem"] for one in besides}
    for sample in samples:
        if len(found) < number and sample["problem"] not in taken:
            found.setdefault(sample["problem"], sample)
    return list(found.values())


def _timing(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _TIMING).read_text(encoding="utf-8"))
        return {key: found[key] for key in ("started", "wall_s", "answers_asked", "answers_kept_before")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cut(text: str) -> str:
    """The text, cut where it is longer than anybody reads."""
    more = len(text) - _MAX_CHARACTERS
    return text if more <= 0 else f"{text[:_MAX_CHARACTERS]}\n... {more} more characters"

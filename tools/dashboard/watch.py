"""All runs of the page: read when somebody asks, at most once a second, by one thread at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.dashboard.answers import AnswerBook, Wanted
from tools.dashboard.errors import DashboardError
from tools.dashboard.run import WatchedRun
from tools.dashboard.settings import side_by_side

#: Between two reads, however many people watch.
EVERY_S = 1.0
#: Reading of one call; the page asks again at once while there is more.
_BUDGET_S = 0.5
#: As many as there are colours that people can tell apart.
MAX_RUNS = 8


class Watch:
    """The runs and their answers; safe to use from several threads.

    Raises:
      DashboardError: a directory is none of a run, one is named twice, or there are too many.
      ConfigError: a run's config.toml can't be used.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if len(directories) > MAX_RUNS:
            raise DashboardError(f"{len(directories)} runs were given, expected at most {MAX_RUNS} at once")
        if len({directory.resolve() for directory in directories}) < len(directories):
            raise DashboardError("a run's directory was given twice, expected each once")
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._next_s = float("-inf")
        self.book = AnswerBook()
        self.runs = [
            WatchedRun(directory, number, self.book, clock=clock, monotonic=monotonic)
            for number, directory in enumerate(directories)
        ]
        for run, label in zip(self.runs, _labels(self.runs), strict=True):
            run.label = label

    def about(self) -> dict[str, Any]:
        """What does not change: the runs and the settings that the page draws as bounds."""
        return {
            "runs": [
                {
                    "label": run.label,
                    "steps": run.config.learner.steps,
                    "warm_steps": run.config.warm_start.max_steps if run.config.warm_start else None,
                    "kl_budget": run.config.learner.loss.kl.budget,
                    "max_staleness": run.config.rollout.max_staleness,
                    "max_tokens": run.config.rollout.max_tokens,
                }
                for run in self.runs
            ],
            "settings": side_by_side([run.config for run in self.runs]),
        }

    def changes(self, known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Where every run stands, and the rows of its curves that a reader does not have.

        Args:
          known: of each run {"life": number, "tables": {name: (generation, serial)}}, as in an earlier reply.
        """
        with self._lock:
            self._read()
            return {
                "answers": self.book.serial,
                "more": any(run.is_behind for run in self.runs),
                "runs": [{"now": run.now(), "curves": run.curves(_tables(known, run))} for run in self.runs],
            }

    def answers(self, wanted: Wanted) -> dict[str, Any]:
        """Answers that a reader looks for."""
        with self._lock:
            self._read()
            return self.book.found(wanted)

    def _read(self) -> None:
        begun_s = self._monotonic()
        if begun_s < self._next_s:
            return
        for number, run in enumerate(self.runs, start=1):
            run.read(begun_s + _BUDGET_S * number / len(self.runs))
        behind = any(run.is_behind for run in self.runs)
        self._next_s = self._monotonic() + (0.0 if behind else EVERY_S)


def _tables(known: Sequence[Mapping[str, Any]], run: WatchedRun) -> Mapping[str, Sequence[int]]:
    mine = known[run.number] if run.number < len(known) else {}
    return mine.get("tables") or {} if mine.get("life") == run.life else {}


def _labels(runs: Sequence[WatchedRun]) -> list[str]:
    """Names of the runs; with the directory where two have the same, with a number where that is the same, too."""
    names = [run.label for run in runs]
    labels = [
        name if names.count(name) == 1 else f"{name} ({run.paths.directory.name})"
        for name, run in zip(names, runs, strict=True)
    ]
    return [label if labels.count(label) == 1 else f"{label} {number}" for number, label in enumerate(labels, start=1)]

"""One run as the page knows it: read piece by piece from its files, kept in bounded memory."""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.load import load_past_config
from configs.schema import Config
from serving_bridge.telemetry import MetricsTail, Record
from tools.assembly import RunPaths, build_registry, in_directory, run_paths
from tools.dashboard import figures_now
from tools.dashboard.answers import AnswerBook, held_out_answers
from tools.dashboard.curves import Curves, checked
from tools.dashboard.errors import DashboardError
from tools.dashboard.happenings import told
from tools.dashboard.queue_look import QueueLook
from tools.dashboard.texts import line
from tools.reporting import figures

#: Read at a time: a piece is handled in some tens of milliseconds.
_PIECE_BYTES = 2**21
#: Newest events of each kind in memory, as many as the figures of the moment need.
_KEPT = 2000
_MAX_HAPPENINGS = 100
_KEPT_VERSIONS = 5000
#: What an event that is not as ours are leads to.
_ODD = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)


class WatchedRun:
    """Follows the files of a run's directory, which it never changes.

    Args:
      number: of this run, among those that are watched.
      book: takes the run's answers.

    Attributes:
      label: its name, for people.
      life: rises when its metrics file was replaced, and everything is read anew.

    Raises:
      DashboardError: the directory is none of a run.
      ConfigError: its config.toml can't be used.
    """

    def __init__(
        self,
        directory: Path,
        number: int,
        book: AnswerBook,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config_of(directory)
        self.paths: RunPaths = run_paths(in_directory(self.config, directory))
        self.label = line(self.config.run.name, 60)
        self.number = number
        self.life = 0
        self._book, self._clock, self._monotonic = book, clock, monotonic
        self._registry = build_registry(self.paths)
        self._queue_look = QueueLook(self.config, self.paths, clock=monotonic)
        self._begin()

    def _begin(self) -> None:
        self._tail = MetricsTail(self.paths.metrics, piece_bytes=_PIECE_BYTES)
        self._file: int | None = None
        self._history = figures.RunHistory(intervals=deque(maxlen=_KEPT))
        self._curves = Curves()
        self._happenings: deque[dict[str, Any]] = deque(maxlen=_MAX_HAPPENINGS)
        self._steps_of_versions: OrderedDict[int, int] = OrderedDict()
        self._queue: dict[str, Any] = {}
        self._problem = ""
        self._share_read = 1.0
        self._refused = 0

    def read(self, until_s: float) -> None:
        """Takes in what came since the last call, until this time of the monotonic clock; the rest comes next time."""
        self._share_read = 1.0
        try:
            self._notice_another_file()
            for records in self._tail.pieces():
                self._take(records)
                if self._monotonic() >= until_s:
                    self._share_read = min(1.0, self._tail.offset / max(1, os.stat(self.paths.metrics).st_size))
                    break
            self._problem = ""
        except OSError as error:
            self._problem = line(f"{self.paths.metrics.name} can't be read: {error.strerror or error}")
        if not self.is_behind:
            self._look_at_queue()

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read at once; what is less than a piece comes with the next read."""
        return self._share_read < 1.0

    def now(self) -> dict[str, Any]:
        """Everything but the curves, as JSON has it."""
        found: dict[str, Any] = {}
        problem = self._problem
        try:
            found = figures_now.standing(self._history, self.config, now=self._clock())
            found["replicas"] = figures_now.replicas(self._history, self._registry)
        except (*_ODD, OSError) as error:
            problem = problem or line(f"the run's figures can't be shown: {type(error).__name__}: {error}")
        return found | {
            "life": self.life,
            "problem": problem,
            "refused": self._refused,
            "read": round(self._share_read, 3),
            "published": next(reversed(self._steps_of_versions), None),
            "queue": self._queue,
            "happenings": list(self._happenings),
        }

    def curves(self, known: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Rows that a reader of these (generation, serial) by table does not have."""
        return self._curves.changes(known)

    def _notice_another_file(self) -> None:
        """A run that was begun anew in its directory has another file, or a shorter one."""
        try:
            found = os.stat(self.paths.metrics)
        except FileNotFoundError:
            return
        replaced = self._file is not None and found.st_ino != self._file
        if replaced or found.st_size < self._tail.offset:
            self.life += 1
            self._book.forget(self.number)
            self._begin()
        self._file = found.st_ino

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            try:
                self._take_one(record)
            except _ODD:
                self._refused += 1  # an event of nobody's making, or of a newer build
        self._forget_old()

    def _take_one(self, record: Record) -> None:
        history, record = self._history, checked(record)
        history.add([record])
        t = history.wall_s()
        last_step = next(reversed(history.steps), 0) if history.steps else 0
        self._curves.take(record, t, last_step)
        if (happening := told(record, t)) is not None:
            self._happenings.append(happening)
        match record["event"]:
            case "evaluation":
                which = str(record["which"])
                step = 0 if which == "before" else last_step
                self._book.add(self.number, held_out_answers(record, when=line(which, 20), step=step))
            case "heldout":
                step = int(record["step"])
                self._book.add(self.number, held_out_answers(record, when=f"step {step}", step=step))
            case "published":
                self._steps_of_versions[int(record["version"])] = int(record["step"])
                while len(self._steps_of_versions) > _KEPT_VERSIONS:
                    self._steps_of_versions.popitem(last=False)

    def _forget_old(self) -> None:
        history = self._history
        for kept in (history.rounds, history.heldout, history.warm_start, history.phases, history.carried_on):
            del kept[:-_KEPT]
        for record in history.evaluations.values():
            record.pop("samples", None)
            record.pop("scores", None)
        for record in history.heldout:
            record.pop("samples", None)
        for step in list(history.steps)[:-_KEPT]:
            del history.steps[step]

    def _look_at_queue(self) -> None:
        seen = self._queue_look.look(self._steps_of_versions)
        if seen is None:
            return
        self._queue = figures_now.queue(seen.progress, seen.problem, self.config)
        self._book.add(self.number, seen.answers)
        if seen.progress is not None and not self._history.is_over:
            t = self._history.wall_s(self._clock())
            depth = {"ready": seen.progress.num_ready, "leased": seen.progress.num_leased}
            self._curves.tables["queue"].add(t, t, depth | {"claimed": seen.progress.num_claimed})


def config_of(directory: Path) -> Config:
    """The configuration of a run's directory.

    Raises:
      DashboardError: the directory is none of a run.
      ConfigError: its config.toml can't be used.
    """
    path = directory / "config.toml"
    if not path.is_file():
        raise DashboardError(f"{directory} is no run: expected a directory with config.toml, such as runs/demo")
    return load_past_config(path)

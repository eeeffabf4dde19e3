"""Several tasks as one: their problems are mixed by weight, and each answer goes to the task that made the problem."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rewards.contracts import Problem, RewardRequest, RewardResult, Split, Task, TaskError, failed
from rewards.tasks.interleaved import place, whole_shares

_DIGEST_CHARACTERS = 12
_MAX_LABELS = 120


class MixtureTask:
    """Implements `rewards.contracts.Task` by several tasks, called sources here.

    Train follows a pattern of the sources' weights. Validation and held-out problems follow it, too, as long as every
    source has some left; sources that have no more are left out from there on.

    Args:
      sources: by label; their problems carry it.
      weights: by label; None for all: each source gives as many prompts as it has problems.

    Raises:
      TaskError: without weights, a source makes problems without end.
    """

    def __init__(self, sources: Mapping[str, Task], weights: Mapping[str, float | None]) -> None:
        self._sources = dict(sources)
        self._labels = list(sources)
        given = [weight for weight in weights.values() if weight is not None]
        sizes = None if given else [self._size(label) for label in self._labels]
        self._weights = [float(size) for size in sizes] if sizes is not None else given
        self._shares = list(sizes) if sizes is not None else whole_shares(given)
        self._held: dict[Split, _Held] = {
            split: _Held(split, list(self._sources.values()), self._weights) for split in ("validation", "heldout")
        }

    @property
    def version(self) -> str:
        versions = "\n".join(f"{label} {task.version}" for label, task in self._sources.items())
        digest = hashlib.sha256(versions.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
        return f"mixture/{'+'.join(self._labels)[:_MAX_LABELS]}@{digest}"

    @property
    def sources(self) -> Mapping[str, Task]:
        """The tasks by label."""
        return self._sources

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of train prompts that each source gives."""
        total = sum(self._shares)
        return {label: share / total for label, share in zip(self._labels, self._shares, strict=True)}

    def problem(self, split: Split, index: int) -> Problem:
        if index < 0:
            raise TaskError(f"task.sources: problem index {index} is negative")
        source, within = place(index, self._shares) if split == "train" else self._held[split].place(index)
        label = self._labels[source]
        return replace(self._sources[label].problem(split, within), index=index, source=label)

    def num_distinct(self, split: Split) -> int | None:
        numbers = [task.num_distinct(split) for task in self._sources.values()]
        return None if None in numbers else sum(number for number in numbers if number is not None)

    def target(self, problem: Problem) -> str:
        return self._of(problem).target(problem)

    def score(self, request: RewardRequest) -> RewardResult:
        if request.problem.source not in self._sources:
            return failed(f"the problem is of {request.problem.source!r:.100}, which is no source", "refused")
        return self._of(request.problem).score(request)

    def close(self) -> None:
        for task in self._sources.values():
            task.close()

    def _of(self, problem: Problem) -> Task:
        return self._sources[problem.source]

    def _size(self, label: str) -> int:
        task = self._sources[label]
        size = epoch_size(task)
        if not size:
            raise TaskError(
                f"task.sources: {label!r} {'makes problems without end' if size is None else 'has no train problems'}; "
                f"give every source a weight"
            )
        return size


def epoch_size(task: Task) -> int | None:
    """Prompts after which a task's train problems begin anew; None where nobody knows."""
    inner = getattr(task, "inner", task)
    size = getattr(inner, "epoch_size", None)
    return size if isinstance(size, int) else task.num_distinct("train")


class _Held:
    """The pattern of a split whose sources end: found once, from the first problem on, and remembered."""

    def __init__(self, split: Split, tasks: Sequence[Task], weights: Sequence[float]) -> None:
        self._split, self._tasks, self._weights = split, tasks, weights
        self._places: list[tuple[int, int]] = []
        self._taken = [0] * len(tasks)
        self._open = list(range(len(tasks)))
        self._lock = threading.Lock()

    def place(self, index: int) -> tuple[int, int]:
        with self._lock:
            while len(self._places) <= index:
                self._add(index)
            return self._places[index]

    def _add(self, wanted: int) -> None:
        """The next place: of the source that is furthest behind its weight."""
        while self._open:
            source = min(self._open, key=lambda number: ((self._taken[number] + 1) / self._weights[number], number))
            if self._has(source, self._taken[source]):
                self._places.append((source, self._taken[source]))
                self._taken[source] += 1
                return
            self._open.remove(source)
        raise TaskError(
            f"task.sources: asked for {wanted + 1} distinct {self._split} problems, but there are only "
            f"{len(self._places)} in all sources; ask for fewer, raise task.holdout_percent, or give larger sources"
        )

    def _has(self, source: int, index: int) -> bool:
        known = self._tasks[source].num_distinct(self._split)
        if known is not None:
            return index < known
        try:
            self._tasks[source].problem(self._split, index)
        except TaskError:
            return False
        return True

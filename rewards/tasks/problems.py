"""Which problem is in which split: decided by a hash of its text alone, so that all processes agree without a list.

grain is not used here: importing it imports JAX, which the rollout process must not load. Random access by index
gives what grain would (a position that can be resumed), from hashes that are the same on every machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from rewards.contracts import Problem, Split, TaskError
from rewards.data import split_of, stable_hash, too_few

#: Generator indices tried for one train problem. Train holds at least 10 percent of the texts, so running out by
#: bad luck has probability 0.9**500 = 1e-23; running out means that no text at all is in train.
_TRAIN_TRIES = 500

#: Successive draws from a split without a new text after which the split counts as exhausted.
_PATIENCE_DRAWS = 300


class ProblemStream(Protocol):
    """Random access to the problems of each split."""

    def problem(self, split: Split, index: int) -> Problem: ...

    def num_distinct(self, split: Split) -> int | None: ...


class GeneratedProblems:
    """Splits of an endless generator of problems, addressed by generator index 0, 1, 2, ...

    Train problem k is generator index k if that text is in train, else the first of k + N, k + 2N, ... that is
    (N = `num_problems`): no scan, and no state. The stream repeats after N. Validation and held-out problems are the
    distinct texts of their split among indices 0 .. N-1, in order; found ones are remembered.
    """

    def __init__(
        self, generate: Callable[[int], Problem], *, num_problems: int, holdout_percent: int, origin: str
    ) -> None:
        self._generate = generate
        self._num_problems = num_problems
        self._holdout_percent = holdout_percent
        self._origin = origin
        self._lock = threading.Lock()
        self._found: dict[Split, list[Problem]] = {"validation": [], "heldout": []}
        self._seen: set[str] = set()
        self._last_found: dict[Split, int] = {"validation": 0, "heldout": 0}
        self._scanned = 0

    def num_distinct(self, split: Split) -> int | None:
        return None

    def problem(self, split: Split, index: int) -> Problem:
        if index < 0:
            raise TaskError(f"{self._origin}: problem index {index} is negative")
        if split == "train":
            return self._train_problem(index)
        with self._lock:
            while len(self._found[split]) <= index:
                if self._exhausted(split):
                    raise too_few(self._origin, split, index, len(self._found[split]), self._holdout_percent)
                self._scan_one()
            return self._found[split][index]

    def _train_problem(self, index: int) -> Problem:
        slot = index % self._num_problems
        for attempt in range(_TRAIN_TRIES):
            problem = self._generate(slot + attempt * self._num_problems)
            if split_of(problem.question, self._holdout_percent) == "train":
                return replace(problem, index=index)
        raise TaskError(
            f"{self._origin}: none of {_TRAIN_TRIES} generated problems is in the train split; the task has too few "
            f"distinct questions, widen task.options"
        )

    def _exhausted(self, split: Split) -> bool:
        quiet = self._scanned - self._last_found[split]
        return self._scanned >= self._num_problems or quiet > _PATIENCE_DRAWS * 100 // self._holdout_percent

    def _scan_one(self) -> None:
        problem = self._generate(self._scanned)
        text = problem.question.strip()
        split = split_of(text, self._holdout_percent)
        self._scanned += 1
        if split != "train" and text not in self._seen:
            self._seen.add(text)
            self._found[split].append(replace(problem, index=len(self._found[split])))
            self._last_found[split] = self._scanned


class ListedProblems:
    """Splits of a list of problems that fits in memory; train runs through it in a new seeded order every epoch."""

    def __init__(self, problems: Sequence[Problem], *, seed: int, holdout_percent: int, origin: str) -> None:
        self._seed = seed
        self._holdout_percent = holdout_percent
        self._origin = origin
        splits: dict[Split, list[Problem]] = {"train": [], "validation": [], "heldout": []}
        seen: set[str] = set()
        for problem in problems:
            text = problem.question.strip()
            split = split_of(text, holdout_percent)
            if split == "train" or text not in seen:
                splits[split].append(problem)
            seen.add(text)
        self._splits = splits
        self._num_train_distinct = len({p.question.strip() for p in splits["train"]})
        for split in ("validation", "heldout"):
            splits[split] = self._shuffled(splits[split], epoch=0)
        self._epochs: dict[int, list[Problem]] = {}

    @property
    def epoch_size(self) -> int:
        """Train problems, those with the same question included."""
        return len(self._splits["train"])

    def num_distinct(self, split: Split) -> int | None:
        return self._num_train_distinct if split == "train" else len(self._splits[split])

    def problem(self, split: Split, index: int) -> Problem:
        if index < 0:
            raise TaskError(f"{self._origin}: problem index {index} is negative")
        problems = self._splits[split]
        if split != "train":
            if index >= len(problems):
                raise too_few(self._origin, split, index, len(problems), self._holdout_percent)
            return replace(problems[index], index=index)
        if not problems:
            raise TaskError(f"{self._origin}: no problem is in the train split; it needs more distinct questions")
        epoch, position = divmod(index, len(problems))
        order = self._epochs.get(epoch)
        if order is None:
            order = self._shuffled(problems, epoch=epoch)
            # Prompts are drawn in order, from one epoch or across one boundary; older orders are recomputed if needed.
            self._epochs = {**{e: o for e, o in self._epochs.items() if abs(e - epoch) <= 1}, epoch: order}
        return replace(order[position], index=index)

    def _shuffled(self, problems: list[Problem], *, epoch: int) -> list[Problem]:
        """Seeded order that doesn't depend on any library's random stream: sorted by a keyed hash."""
        keys = [stable_hash("order", self._seed, epoch, i, p.question) for i, p in enumerate(problems)]
        return [problems[i] for i in sorted(range(len(problems)), key=keys.__getitem__)]

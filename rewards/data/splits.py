"""The splits of rows: by files of their own or by a hash, without a question in two of them, and in a seeded order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rewards.contracts import Problem, Split, TaskError
from rewards.data.orders import Permutation, stable_hash
from rewards.data.table import RowTable
from rewards.data.train_order import TrainOrder
from rewards.settings import CurriculumSettings

_BUCKETS = 10_000
SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")


def bucket_split(bucket: int, holdout_percent: int) -> Split:
    """Split of a bucket of the hash's range.

    Held-out and validation are cut from opposite ends: raising the share never moves a text between them.
    """
    cut = holdout_percent * _BUCKETS // 100
    if bucket < cut:
        return "heldout"
    return "validation" if bucket >= _BUCKETS - cut else "train"


def split_of(question: str, holdout_percent: int) -> Split:
    """Split of a question: `holdout_percent` of all texts are held out, as many are validation, the rest is train."""
    return bucket_split(stable_hash("split", question.strip()) % _BUCKETS, holdout_percent)


@dataclass(frozen=True)
class Members:
    """The rows of one split: their table, and their numbers in it."""

    table: RowTable
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> np.ndarray:
        return np.asarray(self.table.keys[self.rows])

    def problem(self, place: int) -> Problem:
        return self.table.problem(int(self.rows[place]))


@dataclass(frozen=True)
class LeftOut:
    """Rows that no split has.

    Attributes:
      repeated: validation and held-out rows whose question stands in an earlier row of the same split.
      overlapping: by split, rows whose question is in a split that must not share it; they are not asked there.
    """

    repeated: Mapping[Split, int]
    overlapping: Mapping[Split, int]


class SplitRows:
    """Problems by split and index.

    A question is in one split alone: what is held out is neither validated nor trained on, whatever the files say.
    Train runs through its rows in a new seeded order every epoch, rows that stand twice included. Validation and
    held-out problems are distinct.

    Args:
      tables: train, and where they have sources of their own, validation and held-out.
      seed: orders the rows; which split a question is in does not depend on it.
    """

    def __init__(
        self,
        tables: Mapping[Split, RowTable],
        *,
        seed: int,
        holdout_percent: int,
        curriculum: CurriculumSettings | None = None,
    ) -> None:
        self._holdout_percent = holdout_percent
        self._origins: dict[Split, str] = {split: tables.get(split, tables["train"]).origin for split in SPLITS}
        self.members, self.left_out = _divided(tables, holdout_percent)
        self._num_train_distinct = len(np.unique(self.members["train"].keys))
        self._orders: dict[Split, Permutation] = {
            split: Permutation(len(self.members[split]), stable_hash("order", seed, split))
            for split in ("validation", "heldout")
            if len(self.members[split])
        }
        train = self.members["train"]
        difficulties = train.table.index.difficulties[train.rows] if curriculum is not None else None
        self._train = TrainOrder(len(train), seed=seed, curriculum=curriculum, difficulties=difficulties)

    def num_distinct(self, split: Split) -> int:
        return self._num_train_distinct if split == "train" else len(self.members[split])

    def problem(self, split: Split, index: int) -> Problem:
        """The problem at an index of a split.

        Raises:
          TaskError: there is none; or the source has changed.
        """
        origin, members = self._origins[split], self.members[split]
        if index < 0:
            raise TaskError(f"{origin}: problem index {index} is negative")
        if split == "train":
            if not len(members):
                raise TaskError(f"{origin}: no problem is in the train split; it needs more distinct questions")
            return replace(members.problem(self._train.place(index)), index=index)
        if index >= len(members):
            raise too_few(origin, split, index, len(members), self._holdout_percent)
        return replace(members.problem(self._orders[split][index]), index=index)


def too_few(origin: str, split: Split, index: int, found: int, holdout_percent: int) -> TaskError:
    """The error of a split that is asked for more than it has."""
    return TaskError(
        f"{origin}: asked for {index + 1} distinct {split} problems, but there are only {found}; ask for fewer, widen "
        f"the task (task.options, task.num_problems or a larger file), or raise task.holdout_percent "
        f"(now {holdout_percent})"
    )


def _divided(tables: Mapping[Split, RowTable], holdout_percent: int) -> tuple[dict[Split, Members], LeftOut]:
    """Who is in which split: held-out first, since nothing of it may be anywhere else."""
    by_hash = _hashed(tables["train"].keys, tables, holdout_percent)
    members: dict[Split, Members] = {}
    repeated: dict[Split, int] = {}
    overlapping: dict[Split, int] = {}
    taken = np.empty(0, np.uint64)
    for split in ("heldout", "validation", "train"):
        table = tables.get(split, tables["train"])
        rows = by_hash[split] if table is tables["train"] else np.arange(len(table), dtype=np.int64)
        keys = np.asarray(table.keys[rows])
        free = ~np.isin(keys, taken)
        overlapping[split] = int(len(rows) - free.sum())
        rows, keys = rows[free], keys[free]
        if split != "train":
            _, first = np.unique(keys, return_index=True)
            repeated[split] = len(rows) - len(first)
            rows = rows[np.sort(first)]
            taken = np.union1d(taken, keys)
        members[split] = Members(table, rows)
    return members, LeftOut(repeated, overlapping)


def _hashed(keys: np.ndarray, tables: Mapping[Split, RowTable], holdout_percent: int) -> dict[Split, np.ndarray]:
    """Row numbers of the train source by split; all of a split that has a source of its own are train."""
    buckets = (np.asarray(keys) % np.uint64(_BUCKETS)).astype(np.int64)
    cut = holdout_percent * _BUCKETS // 100
    heldout = (buckets < cut) & ("heldout" not in tables)
    validation = (buckets >= _BUCKETS - cut) & ("validation" not in tables)
    chosen: dict[Split, np.ndarray] = {"heldout": heldout, "validation": validation, "train": ~(heldout | validation)}
    return {split: np.flatnonzero(mask) for split, mask in chosen.items()}

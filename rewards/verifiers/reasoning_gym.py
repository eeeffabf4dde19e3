"""`reasoning_gym`: the scorer of the reasoning-gym dataset that a row comes from, whichever it is.

A row is an entry of the library: question, answer and metadata, whose "source_dataset" names the dataset. Scorers that
run the answer as Python see only answers that pass a guard.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from rewards.contracts import RewardResult, scored
from rewards.sandbox import GUARDS, refusal
from rewards.verifiers.columns import wrong
from rewards.verifiers.pooled import Pooled
from rewards.verifiers.verifier import Row, RowError

_COLUMNS = ("dataset", "source_dataset", "name")


def create(*, deadline_s: float, num_workers: int) -> Pooled:
    return Pooled(__name__, check, deadline_s=deadline_s, num_workers=num_workers)


def check(row: Row) -> None:
    """Raises `RowError` if the row is no entry, or names no dataset whose scorer may see answers of a model."""
    _dataset(_name(row, _entry(row)))


def prepare() -> None:
    """Loads the library, which takes a second."""
    import reasoning_gym.factory  # noqa: F401


def judge(answer: str, row: Row) -> RewardResult:
    """The library's score; several datasets give partial credit.

    The dataset's name is in the row's "dataset", "source_dataset" or "name", else in its metadata's "source_dataset".
    The entry is `row["entry"]` where there is one, else the row itself.

    Raises:
      RowError: the row is no entry, or names no dataset.
    """
    entry = _entry(row)
    name = _name(row, entry)
    dataset, text = _dataset(name), answer.strip()
    reasons: tuple[str, ...] = (f"expected {entry.get('answer')!r:.200}",)
    guard = GUARDS.get(name)
    if guard is not None and not guard(text, entry):
        score = float(dataset.score_answer(None, entry))
        reasons += ("the answer is not of the form that this dataset evaluates",)
    else:
        score = float(dataset.score_answer(text, entry))
    return scored(score, {"library_score": score}, reasons=reasons)


def _entry(row: Row) -> Mapping[str, Any]:
    entry = row.get("entry", row)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("metadata"), Mapping):
        raise wrong("the row", entry, 'an entry of reasoning-gym with "question", "answer" and "metadata"')
    if not isinstance(entry.get("answer"), str | None):
        raise wrong("row.answer", entry["answer"], "the text of an entry's answer")
    return entry


def _name(row: Row, entry: Mapping[str, Any]) -> str:
    found = next((row[column] for column in _COLUMNS if row.get(column)), entry["metadata"].get("source_dataset"))
    if not isinstance(found, str):
        raise wrong("row.dataset", found, "the name of a reasoning-gym dataset")
    return found


@lru_cache(maxsize=256)
def _dataset(name: str) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise RowError(f"row.dataset {name!r:.100} is no reasoning_gym dataset{hint}")
    if why := refusal(name, DATASETS[name][0]):
        raise RowError(f"reasoning_gym {name} can't be used: {why}")
    try:
        return reasoning_gym.create_dataset(name, seed=0)
    except Exception as error:  # the library checks its options with assert, ValueError, TypeError and others
        raise RowError(f"reasoning_gym {name} can't be made: {type(error).__name__}: {error}") from error

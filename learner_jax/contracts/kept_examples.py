"""Supervised examples as a run keeps them, and how those of a withdrawn session are taken out while it goes on.

Producer: the learner, which renders rows once. Consumers: the learner, and whoever withdraws. An example that was taken
out keeps its place, so that the order of all others stays; its tokens are zeros, all of them of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from learner_jax.contracts.record_bounds import ContractError

#: name of a file without `.npy` -> its dtype; `ends` and `prompts` have one entry for each example
EXAMPLE_ARRAYS = {"tokens": np.int32, "ends": np.int64, "prompts": np.int32}
#: the session of each row, "" where it is of none; a row has as many examples as all others
ROW_SESSIONS = "sessions.json"


def is_blank(prompt_tokens: int, length: int) -> bool:
    """Whether an example was taken out: all others end with a token of the answer."""
    return prompt_tokens >= length


def blank_examples(folder: Path, sessions: Collection[str]) -> int:
    """Takes the examples of sessions out of a run's files, where a run that goes on sees it at once; returns how many.

    Raises:
      OSError: the files can't be read or written.
      ContractError: they are not those of a run.
    """
    try:
        rows = json.loads((folder / ROW_SESSIONS).read_bytes())
    except ValueError as error:
        raise ContractError(f"{folder / ROW_SESSIONS} is damaged: {error}") from error
    tokens, ends, prompts = (_opened(folder, name) for name in EXAMPLE_ARRAYS)
    if not isinstance(rows, list) or (rows and len(ends) % len(rows)) or len(ends) != len(prompts):
        raise ContractError(f"{folder} is damaged: {ROW_SESSIONS} does not fit its examples")
    per_row, blanked = len(ends) // max(1, len(rows)), 0
    for number in range(len(ends)):
        begin, end = int(ends[number - 1]) if number else 0, int(ends[number])
        if rows[number // per_row] in sessions and not is_blank(int(prompts[number]), end - begin):
            prompts[number] = end - begin  # first: who reads it between the two has nothing to learn from
            tokens[begin:end] = 0
            blanked += 1
    for array in (prompts, tokens):
        array.flush()
    return blanked


def _opened(folder: Path, name: str) -> np.memmap:
    try:
        found = np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
    except ValueError as error:
        raise ContractError(f"{folder / name}.npy is damaged: {error}") from error
    if not isinstance(found, np.memmap) or found.ndim != 1 or found.dtype != EXAMPLE_ARRAYS[name]:
        raise ContractError(f"{folder / name}.npy holds no {EXAMPLE_ARRAYS[name].__name__} numbers in a row")
    return found

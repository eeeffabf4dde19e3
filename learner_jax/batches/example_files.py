"""Supervised examples as token ids in files: rendered once, then read at random without the texts.

A folder holds `tokens` of all examples in a row, the `ends` of each, and how many tokens of each are its prompt. It is
written under another name first, so that a folder that is there is complete. Examples of a session that is withdrawn
later are taken out of it (`learner_jax.contracts.blank_examples`); others stand in for them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from learner_jax.batches.sequences import BatchError
from learner_jax.batches.supervised import Example
from learner_jax.contracts import EXAMPLE_ARRAYS, ROW_SESSIONS
from learner_jax.runtime import sync_path

_FACTS = "facts.json"


class ExampleFiles:
    """Examples by number.

    Args:
      per_row: examples that each row of the data has given.

    Raises:
      BatchError: the folder is not one that `write_examples` made.
    """

    def __init__(self, folder: Path, *, per_row: int = 1) -> None:
        self._per_row = per_row
        try:
            self.facts: dict[str, str] = json.loads((folder / _FACTS).read_text())
            self._tokens, self._ends, self._prompts = (
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in EXAMPLE_ARRAYS
            )
        except (OSError, ValueError) as error:
            raise BatchError(
                f"{folder} holds no examples that can be read: {error}; delete it to render anew"
            ) from error
        whole = len(self._ends) == len(self._prompts) and (not len(self._ends) or self._ends[-1] == len(self._tokens))
        if not whole:
            raise BatchError(f"{folder} is damaged: its arrays don't fit together; delete it to render anew")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Example:
        """(tokens, loss mask) of example `number`, from 0 on; the mask is on the answer.

        That of the next row that is there, in the place of one that was taken out.

        Raises:
          BatchError: all were.
        """
        for step in range(0, len(self), self._per_row):
            tokens, mask = self._at((number + step) % len(self))
            if mask.any():
                return tokens, mask  # type: ignore[return-value]
        raise BatchError("the consent for all of these examples was withdrawn: begin another run, with others")

    def _at(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        begin = int(self._ends[number - 1]) if number else 0
        tokens = np.array(self._tokens[begin : int(self._ends[number])])
        prompt = int(self._prompts[number])  # after the tokens: of one that is taken out just now, nothing is learned
        return tokens, np.arange(len(tokens)) >= prompt

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(np.diff(self._ends, prepend=0).max())


def write_examples(
    folder: Path, examples: Iterable[Example], facts: dict[str, str], sessions: Sequence[str] = ()
) -> None:
    """Writes examples, durably and whole; their masks must be False up to the answer, and True from there on.

    Args:
      facts: what the ids depend on, kept beside them.
      sessions: the recorded session of each row, "" where it is of none; may be filled while `examples` are made.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pieces: list[np.ndarray] = []
    prompts: list[int] = []
    for tokens, mask in examples:
        pieces.append(np.asarray(tokens, np.int32))
        prompts.append(len(mask) - int(np.count_nonzero(np.asarray(mask))))
    arrays = (
        np.concatenate(pieces) if pieces else np.empty(0, np.int32),
        np.cumsum([len(piece) for piece in pieces]),
        np.array(prompts),
    )
    for (name, dtype), array in zip(EXAMPLE_ARRAYS.items(), arrays, strict=True):
        np.save(partial / f"{name}.npy", array.astype(dtype))
        sync_path(partial / f"{name}.npy")
    (partial / ROW_SESSIONS).write_text(json.dumps(list(sessions)))
    sync_path(partial / ROW_SESSIONS)
    (partial / _FACTS).write_text(json.dumps(facts, sort_keys=True))
    sync_path(partial / _FACTS)
    sync_path(partial)
    partial.rename(folder)
    sync_path(folder.parent)

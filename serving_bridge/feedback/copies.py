"""The examples that runs keep of a dataset: the dataset lists them, so that a withdrawal finds them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from learner_jax.contracts import ContractError, blank_examples
from learner_jax.runtime import FILE_MODE

#: names of files in a dataset's folder
MANIFEST, _COPIES = "manifest.json", "copies.jsonl"


class _Copy(msgspec.Struct):
    examples: str


def note_copy(data: Path, examples: Path) -> bool:
    """Notes beside a file of a dataset where a run keeps examples of it; False where it is of no dataset.

    Raises:
      OSError: the dataset's folder can't be written: a withdrawal would not reach the run.
    """
    if data.suffix != ".jsonl" or not (data.parent / MANIFEST).is_file():
        return False
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(data.parent / _COPIES, flags, FILE_MODE)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.write(file, msgspec.json.encode(_Copy(str(examples.absolute()))) + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    return True


def clean_copies(dataset: Path, session_ids: Collection[str]) -> bool:
    """Takes sessions out of all examples that runs keep of a dataset; whether all of them were reached."""
    try:
        lines = (dataset / _COPIES).read_bytes().splitlines()
    except FileNotFoundError:
        return True
    reached = True
    for folder in dict.fromkeys(lines):
        try:
            blank_examples(Path(msgspec.json.decode(folder, type=_Copy).examples), session_ids)
        except (OSError, ContractError, msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            reached = False  # the others must be cleaned all the same
    return reached

"""Where scored lines go: a file that is there whole or not at all, or standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from learner_jax.runtime import printable
from tools.scoring.lines import ScoreError


@contextmanager
def opened_output(path: str, *, answers: str) -> Iterator[BinaryIO | None]:
    """The file to write to, None without a path; "-" is standard output. A file gets its name when all is written.

    Raises:
      ScoreError: it can't be written, or is the file of answers itself.
    """
    if not path:
        yield None
        return
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        if target.exists() and answers != "-" and os.path.samefile(target, answers):
            raise ScoreError(f"--out {printable(path)[:300]} is the input itself")
        is_special = target.exists() and not target.is_file()
        partial = target if is_special else target.with_name(f"{target.name}.{os.getpid()}.part")
        file = partial.open("wb")
    except (OSError, ValueError) as error:
        if isinstance(error, ScoreError):
            raise
        said = getattr(error, "strerror", None) or error
        raise ScoreError(f"--out {printable(path)[:300]} can't be written: {said}") from None
    try:
        with file:
            yield file
        if not is_special:
            partial.replace(target)
    except BaseException:
        if not is_special:
            partial.unlink(missing_ok=True)
        raise

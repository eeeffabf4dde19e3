"""Every answer of an evaluation in a file of JSON lines, written the moment it comes, and found again by its key."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learner_jax.runtime import FILE_MODE
from tools.evaluation.asking import Answer, Measurement
from tools.evaluation.errors import ResultError

FILE = "answers.jsonl"


class AnswerLog:
    """The answers that are known; `add` appends a line with one write, so that a killed process leaves whole lines.

    A line that a crash tore, the last one, is cut off when the file is opened: that answer is asked again. After a
    power failure the newest lines may be missing. One process at a time may have it open.

    Raises:
      ResultError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        self.num_found = 0

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str) -> Answer | None:
        """The answer under a key, if it was ever given."""
        found = self._known.get(key)
        self.num_found += found is not None
        return found

    def add(self, key: str, answer: Answer, **about: Any) -> None:
        """Keeps an answer.

        Args:
          about: what else stands in its line, for people and other programs.
        Raises:
          OSError: it could not be written whole.
        """
        fields = {key: value for key, value in asdict(answer).items() if key not in ("tokens", "measured") or value}
        line = memoryview(json.dumps({"key": key, **about, **fields}).encode() + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        self._known[key] = answer

    def close(self) -> None:
        """Waits until all is on the disk."""
        os.fsync(self._file)
        os.close(self._file)


def _read(path: Path) -> dict[str, Answer]:
    if not path.exists():
        return {}
    payload = path.read_bytes()
    whole = payload.rfind(b"\n") + 1
    if whole < len(payload):
        os.truncate(path, whole)
    found: dict[str, Answer] = {}
    for number, line in enumerate(payload[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            tokens = tuple(map(int, record.get("tokens", ())))
            told = record.get("measured")
            measured = None if told is None else _measurement(**told)
            answer = Answer(str(record["text"]), str(record["finish_reason"]), record["num_tokens"], tokens, measured)
            found.setdefault(str(record["key"]), answer)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ResultError(
                f"{path}, line {number} is no answer ({type(error).__name__}): remove that line, or begin in another "
                f"folder"
            ) from None
    return found


def _measurement(seconds: float, logprob: float | None, least_logprob: float | None) -> Measurement:
    """Of the fields of a line; TypeError or ValueError for what is none."""
    total, least = (None if one is None else float(one) for one in (logprob, least_logprob))
    return Measurement(float(seconds), total, least)

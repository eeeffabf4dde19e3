"""Answers whose truth is known: lines of a file, their scores, and the halves that are fitted and measured on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from serving_bridge.confidence import CalibrationError, ScoreName, Sums, agreement, score_of
from tools.scoring import Line


class KnownAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
      correct: whether it is right.
      logprobs: of its tokens, in nats, as the gateway tells them; empty where they were not asked for.
      answer, samples: its text, and texts of further answers to the same question.
      question: names the question; answers to one question lie in one half.
    """

    correct: bool
    logprobs: list[Annotated[float, msgspec.Meta(le=1e-3)]] = []
    answer: str = ""
    samples: list[str] = []
    question: str = ""


def read_known(lines: Iterable[Line], *, name: str) -> list[KnownAnswer]:
    """All answers of a file.

    Raises:
      CalibrationError: a line is none, or there are none.
    """
    found = []
    for line in lines:
        try:
            if line.content is None:
                raise ValueError("the line is too long")
            answer = msgspec.json.decode(line.content, type=KnownAnswer)
            if not all(map(math.isfinite, answer.logprobs)):
                raise ValueError("a log-prob is not finite")
        except (ValueError, RecursionError) as error:
            raise CalibrationError(
                f'{name} line {line.number}: expected {{"correct": true, "logprobs": [...], "answer": "...", '
                f'"samples": [...]}}: {str(error)[:200]}'
            ) from None
        found.append(answer if answer.question else msgspec.structs.replace(answer, question=f"line {line.number}"))
    if not found:
        raise CalibrationError(f"{name} has no answers")
    return found


def scores_of(answers: Sequence[KnownAnswer], name: ScoreName) -> list[float]:
    """One score of each answer.

    Raises:
      CalibrationError: an answer lacks what the score is made of.
    """
    found = []
    for number, answer in enumerate(answers, start=1):
        sums = Sums()
        for logprob in answer.logprobs:
            sums.add(logprob)
        score = score_of(name, sums, agreement(answer.answer, answer.samples))
        if score is None:
            wants = '"samples"' if name == "agreement" else '"logprobs"'
            raise CalibrationError(f"answer {number} has no {wants}, of which the score {name} is made")
        found.append(score)
    return found


def halves(answers: Sequence[KnownAnswer]) -> tuple[list[KnownAnswer], list[KnownAnswer]]:
    """The half to fit on, and the other one: by a hash of the question, so the same in every run."""
    fitted: list[KnownAnswer] = []
    held: list[KnownAnswer] = []
    for answer in answers:
        is_fitted = hashlib.blake2b(answer.question.encode("utf-8", "replace"), digest_size=1).digest()[0] % 2 == 0
        (fitted if is_fitted else held).append(answer)
    return fitted, held

"""The verifier of final answers as a reward for rows: 1 for an answer that equals the reference, else 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.mathematics import judge, read_reference
from rewards.tasks.jsonl_math import gold_of


def final_answer(prompt: str, answer: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Score of an answer, and whether it was in a form that is read.

    Raises:
      MathError: the reference in `row["answer"]` is not understood.
    """
    judgement = judge(read_reference(gold_of(str(row["answer"]))), answer)
    return {"score": float(judgement.correct), "parsed": float(judgement.understood)}

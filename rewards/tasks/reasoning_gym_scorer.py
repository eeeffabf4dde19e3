"""The side of a reasoning-gym task that runs in verifier processes: one dataset's scorer, behind its guard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from rewards.sandbox import GUARDS, from_json
from rewards.tasks.reasoning_gym_task import make_dataset


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The function from `{"answer": text, "entry": problem}` to the fields of `rewards.sandbox.Verified`."""
    name = settings["name"]
    dataset = make_dataset(name, settings["options"])
    guard = GUARDS.get(name)

    def score(request: Mapping[str, Any]) -> dict[str, Any]:
        answer, entry = request["answer"], from_json(request["entry"])
        if guard is not None and not guard(answer, entry):
            score = float(dataset.score_answer(None, entry))
            reason = "the answer is not of the form that this dataset evaluates"
            return {"score": score, "parts": {"library_score": score}, "reasons": [reason]}
        score = float(dataset.score_answer(answer, entry))
        return {"score": score, "parts": {"library_score": score}}

    # The children inherit what the libraries load and cache when they are first used.
    with contextlib.suppress(Exception):
        entry = dataset[0]
        dataset.score_answer(entry["answer"], entry)
    return score

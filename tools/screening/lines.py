"""Lines of texts in, decisions out: in order, one line at a time, whatever a line holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from serving_bridge.safety import Checker, Decision, Stage, Verdict
from tools.scoring import Line

_STAGES = ", ".join(Stage)


def checked_lines(lines: Iterable[Line], checker: Checker) -> Iterator[dict[str, Any]]:
    """For each line {"text", "stage"}: verdict, categories, spans and redacted; what can't be read has an error.

    A line that is not understood has the verdict `error`, and nothing of it is repeated.
    """
    for line in lines:
        try:
            text, stage = _read(line)
        except (ValueError, RecursionError) as error:
            yield _fields(Decision(Verdict.ERROR, (), (), "")) | {"line": line.number, "error": str(error)[:300]}
            continue
        decision = checker.check(text, stage)
        failed = [opinion.reason for opinion in decision.opinions if opinion.verdict is Verdict.ERROR]
        yield _fields(decision) | ({"error": failed[0]} if failed else {})


def _fields(decision: Decision) -> dict[str, Any]:
    return {
        "verdict": decision.verdict.value,
        "categories": list(decision.categories),
        "spans": [span.as_list() for span in decision.spans],
        "redacted": decision.redacted,
    }


def _read(line: Line) -> tuple[str, Stage]:
    if line.content is None:
        raise ValueError("the line is too long")
    try:
        record = json.loads(line.content)
    except ValueError:
        raise ValueError('expected JSON, {"text": "...", "stage": "prompt"}') from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError('expected an object with "text", a text')
    stage = record.get("stage", Stage.PROMPT.value)
    if not isinstance(stage, str) or stage not in set(Stage):
        raise ValueError(f'expected "stage" to be one of {_STAGES}')
    return record["text"], Stage(stage)

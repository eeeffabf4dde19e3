"""One line of answers, judged: what is written of it, and what the summary counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rewards.contracts import PASS_SCORE, RewardResult, failed
from tools.scoring.lines import MAX_LINE_BYTES, Line

Judge = Callable[[str, Mapping[str, Any]], RewardResult]
#: What a line says of its answer: right or wrong, nothing, or something that is neither.
Label = bool | Literal["unread"] | None
_LABELS = {"true": True, "false": False, "1": True, "0": False}
_MAX_REASONS = 20
_MAX_REASON_CHARACTERS = 2000


@dataclass(frozen=True)
class Scored:
    """A judged line.

    Attributes:
      number: of the line in, from 1 on.
      output: the line out, as JSON in ASCII without its end.
      verdict: as it stands in the output.
      score: None if there is no verdict on the answer.
      is_bad: the line is no JSON object with "row" and "answer".
    """

    number: int
    output: bytes
    verdict: str
    score: float | None
    label: Label
    seconds: float
    reason: str
    is_bad: bool = False

    @property
    def passes(self) -> bool:
        return self.score is not None and self.score >= PASS_SCORE


def judge_line(line: Line, judge: Judge) -> Scored:
    """Judges the answer of a line; whatever the line holds, it returns."""
    begin = time.perf_counter()
    try:
        row, answer, label = parse_line(line)
    except ValueError as error:
        return of_result(line.number, failed(str(error)), time.perf_counter() - begin, is_bad=True)
    try:
        result = judge(answer, row)
    except Exception as error:  # noqa: BLE001  (isolation: one line must not end the others)
        result = failed(f"{type(error).__name__}: {error}")
    return of_result(line.number, result, time.perf_counter() - begin, label)


def parse_line(line: Line) -> tuple[dict[str, Any], str, Label]:
    """Row, answer and label of a line; control characters and lone surrogates are taken as they are.

    Raises:
      ValueError: it is no JSON object with a "row" that is an object and an "answer" that is text.
    """
    if line.content is None:
        raise ValueError(f"the line has more than {MAX_LINE_BYTES} bytes")
    try:
        text = line.content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8 at byte {error.start}") from None
    try:
        record = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"the line is {_kind(record)}, expected an object")
    row, answer = record.get("row"), record.get("answer")
    if not isinstance(row, dict):
        raise ValueError(f'"row" is {_kind(row) if "row" in record else "missing"}, expected an object')
    if not isinstance(answer, str):
        raise ValueError(f'"answer" is {_kind(answer) if "answer" in record else "missing"}, expected text')
    return row, answer, _label(record["label"] if "label" in record else row.get("label"))


def of_result(
    number: int, result: RewardResult, seconds: float, label: Label = None, *, is_bad: bool = False
) -> Scored:
    """What a verdict looks like in the output."""
    reasons = [reason[:_MAX_REASON_CHARACTERS] for reason in result.reasons[:_MAX_REASONS]]
    verdict = result.finding or result.verdict
    fields = {
        "line": number,
        "score": result.score,
        "verdict": verdict,
        "parts": dict(result.parts),
        "reasons": reasons,
        "seconds": round(seconds, 6),
    }
    reason = reasons[0] if reasons else ""
    return Scored(number, json.dumps(fields).encode(), verdict, result.score, label, seconds, reason, is_bad)


def _kind(value: Any) -> str:
    """What a value is called in JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return "a number"
        case str():
            return "text"
    return "an object" if isinstance(value, dict) else "a list"


def _label(value: Any) -> Label:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return _LABELS.get(value.strip().lower(), "unread") if isinstance(value, str) else "unread"

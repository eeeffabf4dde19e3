"""`format`: the answer has the form that the row asks for: tags, sections, a regular expression.

A row says it in `tags`, `sections` and `regex`, or in an object `format` with these keys. A row that says nothing is
answered in the tags of DeepSeek-R1: `<think>...</think><answer>...</answer>` (arXiv 2501.12948, section 2.2.2).

A regular expression that takes longer than a moment is tried again in a process that can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import regex

from learner_jax.runtime import WeirError
from rewards.contracts import RewardResult, failed, scored
from rewards.instructions import is_blank
from rewards.verifiers.columns import as_text, wrong
from rewards.verifiers.pooled import Pooled
from rewards.verifiers.verifier import Plain, Row, RowError

DEFAULT_TAGS = ("think", "answer")
#: of processor time of the whole process, as `regex` counts it; sensible expressions take less than a thousandth
_AT_ONCE_S = 0.05
_MAX_ITEMS = 100
_KEYS = ("tags", "sections", "regex")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_COLON = re.compile("[:\uff1a]")
_LIST_NUMBER = re.compile(r"^\d{1,3}[.)]\s+")
_TAG = re.compile(r"[A-Za-z][\w.-]{0,63}")


class _SlowError(WeirError):
    """The row's regular expression takes longer than it may here."""


class FormatVerifier:
    """Judges the form of answers; implements `rewards.verifiers.Verifier`.

    Args:
      deadline_s: longest time, by the clock, for an answer with a slow regular expression.
      num_workers: processes for these, started with the first one.
    """

    def __init__(self, *, deadline_s: float, num_workers: int) -> None:
        self._plain = Plain(self._judged)
        self._deadline_s = deadline_s
        self._slowly = Pooled(__name__, _check, deadline_s=deadline_s, num_workers=num_workers)

    def judge(self, answer: str, row: Row) -> RewardResult:
        """As the module's `judge`; a failed verdict ("timeout") where the regular expression is still not done."""
        return self._plain.judge(answer, row)

    def refusal(self, row: Row) -> str:
        return self._plain.refusal(row)

    def _judged(self, answer: str, row: Row) -> RewardResult:
        try:
            return judge(answer, row, regex_s=_AT_ONCE_S)
        except _SlowError:
            result = self._slowly.judge(answer, row)
        if result.verdict != "timeout":
            return result
        return failed(f"row.regex took more than {self._deadline_s:g} s (task.score_timeout_s)", "timeout")

    def close(self) -> None:
        self._slowly.close()


def create(*, deadline_s: float, num_workers: int) -> FormatVerifier:
    return FormatVerifier(deadline_s=deadline_s, num_workers=num_workers)


def _check(row: Row) -> None:
    """Rows come here that were judged in part: nothing is left to check."""


def judge(answer: str, row: Row, *, regex_s: float | None = None) -> RewardResult:
    """Whether the answer has the form; each thing that is asked for is a part, and the score is 1 if all are there.

    Tags and sections must stand once each, in this order, and hold something that can be seen. Nothing but blanks may
    stand outside of tags. A section is a line with its name, outside of blocks of code: `# Name`, `## 1. Name`,
    `**Name**` or `Name:`. A regular expression must match the whole answer, less the blanks around it.

    Args:
      regex_s: bound on the regular expression, in seconds of the process's processor time; None for none.

    Raises:
      RowError: the row asks for something that is not understood.
      _SlowError: the regular expression is not done.
    """
    wanted = _wanted(row)
    found: dict[str, str] = {}
    if tags := wanted.get("tags"):
        found["tags"] = _tags(answer, _names(tags, "tags"))
    if sections := wanted.get("sections"):
        found["sections"] = _sections(answer, _names(sections, "sections"))
    if pattern := wanted.get("regex"):
        compiled = _compiled(as_text(pattern, "row.regex"))
        try:
            is_match = compiled.fullmatch(answer.strip(), timeout=regex_s, concurrent=True) is not None
        except TimeoutError:
            raise _SlowError from None
        found["regex"] = "" if is_match else f"it doesn't match {compiled.pattern!r:.100}"
    parts = {name: float(not why) for name, why in found.items()}
    reasons = tuple(why for why in found.values() if why)
    return scored(float(not reasons), parts, reasons=reasons)


def _wanted(row: Row) -> Mapping[str, Any]:
    stated = row.get("format")
    if isinstance(stated, str):
        return {"regex": stated}
    if stated is not None:
        if not isinstance(stated, Mapping) or not stated or set(stated) - set(_KEYS):
            raise wrong("row.format", stated, f"an object with some of the keys {', '.join(_KEYS)}")
        return stated
    found = {key: row[key] for key in _KEYS if row.get(key)}
    return found or {"tags": DEFAULT_TAGS}


def _names(value: Any, column: str) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not 0 < len(items) <= _MAX_ITEMS:
        raise wrong(f"row.{column}", value, f"a list of up to {_MAX_ITEMS} names")
    names = [as_text(item, f"row.{column}").strip() for item in items]
    if column == "tags":
        names = [name.strip("<>/") for name in names]
    if bad := [name for name in names if not name or (column == "tags" and not _TAG.fullmatch(name))]:
        raise wrong(f"row.{column}", bad[0], "a name")
    return names


def _tags(answer: str, names: list[str]) -> str:
    """What is wrong with the tags; empty if nothing is."""
    position = 0
    for name in names:
        opened, closed = f"<{name}>", f"</{name}>"
        if (begins := answer.count(opened)) != 1 or (ends := answer.count(closed)) != 1:
            which, count = (opened, begins) if begins != 1 else (closed, ends)
            return f"{which} stands {count} times, expected once"
        begin, end = answer.index(opened), answer.index(closed)
        if begin < position or answer[position:begin].strip():
            return f"text, or another tag, stands before {opened}"
        if end < begin or is_blank(answer[begin + len(opened) : end]):
            return f"{opened} holds nothing"
        position = end + len(closed)
    return "text stands after the last tag" if answer[position:].strip() else ""


def _sections(answer: str, names: list[str]) -> str:
    lines = answer.splitlines()
    headings = _headings(lines)
    places: list[int] = []
    for name in names:
        found = [index for index, heading in enumerate(headings) if heading == name.strip(":").casefold()]
        if len(found) != 1:
            return f"the section {name!r:.100} stands {len(found)} times, expected once"
        places.append(found[0])
    if places != sorted(places):
        return "the sections stand in another order"
    for name, begin, end in zip(names, places, [*places[1:], len(lines)], strict=True):
        if is_blank("".join(lines[begin + 1 : end])) and not _after_colon(lines[begin]):
            return f"the section {name!r:.100} is empty"
    return ""


def _headings(lines: Sequence[str]) -> list[str | None]:
    """The section that begins with each line; None in blocks of code, whose comments look like headings."""
    fence, found = "", []
    for line in lines:
        marks = match[1] if (match := _FENCE.match(line)) else ""
        found.append(None if fence or marks else _heading(line))
        if not fence:
            fence = marks
        elif marks.startswith(fence) and not line.strip().strip(marks[0]):
            fence = ""
    return found


def _heading(line: str) -> str | None:
    """The name of a section that begins with this line, in lower case."""
    line = line[:1000].strip()
    if line.startswith("#"):
        return _LIST_NUMBER.sub("", line.strip("#").strip(" *:\uff1a")).casefold()
    if line.startswith("**") and "**" in line[2:]:
        return line[2:].split("**", 1)[0].strip(" :\uff1a").casefold()
    parts = _COLON.split(line, maxsplit=1)
    return parts[0].strip().casefold() if len(parts) > 1 else None


def _after_colon(line: str) -> bool:
    return not is_blank("".join(_COLON.split(line, maxsplit=1)[1:]).strip(" *"))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern, regex.DOTALL)
    except (regex.error, RecursionError, ValueError) as error:
        raise RowError(f"row.regex {pattern!r:.100} is no regular expression: {error}") from None

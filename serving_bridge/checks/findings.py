"""What a check before a start finds: the setting, what was expected, what came, and what to change."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from learner_jax.runtime import WeirError

_SETTING = re.compile(r"((?:run|model|task|learner|rollout|serving|evaluation|store)(?:\.[a-z_]+)+) ")

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, or that one should know.

    Attributes:
      setting: the setting to change, e.g. "serving.max_model_len", or the part of the machine.
      expected, got: what was expected there and what was found.
      change: what to do about it.
      severity: an "error" is certain to end the run, a "warning" may; a "note" only tells.
      may_heal: whether the same start may succeed later, as with a port that is in use.
    """

    setting: str
    expected: str
    got: str
    change: str
    severity: Severity = "error"
    may_heal: bool = False

    def __str__(self) -> str:
        parts = [f"expected {self.expected}" if self.expected else "", self.got]
        said = ", got ".join(filter(None, parts)) if self.expected else self.got
        where = "" if said.startswith(f"{self.setting} ") else f"{self.setting}: "
        return f"{where}{said}" + (f"; {self.change}" if self.change else "")


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
      name: what is looked at, for people.
      setting: named where the look itself fails.
      look: returns what it finds; the project's own errors are findings too.
    """

    name: str
    setting: str
    look: Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Result:
    """What a check found; nothing if all is well."""

    name: str
    findings: tuple[Finding, ...]
    wall_s: float


@dataclass
class _Running:
    check: Check
    thread: threading.Thread = field(init=False)
    findings: list[Finding] = field(default_factory=list)
    error: BaseException | None = None
    wall_s: float = 0.0


def run_checks(checks: Sequence[Check], *, limit_s: float, own: Callable[[BaseException], bool]) -> list[Result]:
    """Runs checks side by side; what takes longer than `limit_s` is left behind and told as a warning.

    Args:
      own: whether an error is one for people, that becomes a finding; any other is raised.
    """
    started = time.monotonic()
    running = [_start(check) for check in checks]
    results = []
    for one in running:
        one.thread.join(max(0.0, started + limit_s - time.monotonic()))
        if one.thread.is_alive():
            late = Finding(one.check.setting, "", f"{one.check.name} not known within {limit_s:g} s", "", "warning")
            results.append(Result(one.check.name, (late,), limit_s))
            continue
        if one.error is not None:
            if not own(one.error):
                raise one.error
            one.findings.append(_failed(one.check, one.error))
        results.append(Result(one.check.name, tuple(one.findings), one.wall_s))
    return _told_once(results)


def _told_once(results: Sequence[Result]) -> list[Result]:
    """What several looks failed at, such as reading the model, is told by the first of them."""
    told: set[str] = set()
    cleaned = []
    for result in results:
        findings = []
        for finding in result.findings:
            if not finding.expected and finding.got in told:
                finding = Finding(result.name, "", "not known, for the same reason", "", "note")
            told.add(finding.got)
            findings.append(finding)
        cleaned.append(Result(result.name, tuple(findings), result.wall_s))
    return cleaned


def _start(check: Check) -> _Running:
    running = _Running(check)

    def look() -> None:
        started = time.monotonic()
        try:
            for finding in check.look():
                running.findings.append(finding)
        except Exception as error:  # noqa: BLE001  (told, or raised, by whoever waits for it)
            running.error = error
        running.wall_s = time.monotonic() - started

    # A look at a file system that hangs must not keep the process from its end.
    running.thread = threading.Thread(target=look, name=f"check of {check.name}", daemon=True)
    running.thread.start()
    return running


def _failed(check: Check, error: BaseException) -> Finding:
    text = str(error)
    named = _SETTING.match(text)  # an error that begins with its setting may come from any look that needs it
    setting = named[1] if named else "" if check.setting in text else check.setting
    return Finding(
        setting or check.name, "", text, "", "error", may_heal=not isinstance(error, WeirError) or error.can_heal
    )

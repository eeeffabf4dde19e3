"""The verifier of answers that are code: they run in sandboxes, and pass if every test of their row holds.

The tests' process and the answer's process are two. Expected values stay in the first, which compares; the second
gets a function's name and arguments, and returns plain data. A pass is a report of the first with a nonce that the
second was never told. So an answer can't pass by ending its process, by objects that equal everything, by looking for
what is expected, or by writing a verdict of its own.

Not covered: an answer that is wrong beyond its tests. Tests that compare objects of a class that the answer itself
defines, by that class's own methods, believe it. Tests that hand the answer objects of a class of their own can't be
judged. Answers have no other processes, no network and no packages but Python's own. Against faults of the kernel,
and for tenants who look for them, a current gVisor or a virtual machine is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.code.sandbox import Limits, Report, SandboxError, SandboxPool, open_pool
from rewards.code.verifier.answer_code import answer_code
from rewards.code.verifier.cases import request_of, text_of
from rewards.code.verifier.python_tests import TestsError
from rewards.contracts import RewardResult, failed, scored
from rewards.sandbox import printable

DEADLINE_S = 15.0
_MAX_REASONS = 3
_MAX_TEXT = 120
_MAX_REASON = 300


class CodeVerifier:
    """Judges code against the tests of its row; has what `rewards.verifiers.Verifier` asks for.

    Safe to call from several threads. What an answer does wrong is a score, also where it ends its sandbox or takes
    too long; the verdict's `finding` is then "error" or "timeout", by the first case that does not hold.

    Args:
      num_workers: answers that are judged at a time.
      deadline_s: for one answer with all of its cases.
      sandbox: what holds answers: "bubblewrap" or "runsc".
      partial: whether the score is the share of cases that hold; else it is 1 or 0.

    Raises:
      SandboxError: this machine can't run code safely.
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        deadline_s: float = DEADLINE_S,
        sandbox: str = "bubblewrap",
        partial: bool = True,
        limits: Limits | None = None,
        pool: SandboxPool | None = None,
    ) -> None:
        self._pool = pool or open_pool(num_workers=num_workers, limits=limits, sandbox=sandbox)
        self._deadline_s = deadline_s
        self._partial = partial

    @property
    def walls(self) -> str:
        """What holds answers here, in words."""
        return self._pool.walls

    def judge(self, answer: str, row: Mapping[str, Any]) -> RewardResult:
        """The verdict on an answer; see `rewards.code.verifier.cases.request_of` for the row's columns."""
        code = answer_code(answer)
        try:
            request = request_of(row, code or "", output_bytes=self._pool.limits.output_bytes)
        except (TestsError, ValueError) as error:
            return failed(_short(str(error)), "refused")
        if code is None:
            reasons = ("there is no Python code in the answer",)
            return scored(0.0, {"passed": 0.0, "cases": float(_count(request["cases"]))}, reasons=reasons)
        try:
            report = self._pool.run(request, self._deadline_s)
        except SandboxError as error:
            return failed(_short(str(error)), "crashed")
        return _verdict(request["cases"], report, partial=self._partial)

    def refusal(self, row: Mapping[str, Any]) -> str:
        """Why answers to this row can't be judged; empty if nothing is known against it."""
        result = self.judge("", row)
        return result.reasons[0] if result.score is None else ""

    def close(self) -> None:
        """Ends the sandboxes."""
        self._pool.close()


def _verdict(cases: list[dict[str, Any]], report: Report, *, partial: bool) -> RewardResult:
    if report.ended:
        parts = {"passed": 0.0, "cases": float(_count(cases))}
        reason = f"error: the sandbox ended: {_short(report.ended)}"
        return scored(0.0, parts, reasons=(reason,), finding="error")
    wrong = [outcome for outcome in report.outcomes if outcome["why"]]
    unjudged = [outcome for outcome in wrong if outcome["kind"] == "unjudged"]
    reasons = tuple(_reason(cases, outcome) for outcome in wrong[:_MAX_REASONS])
    if unjudged and len(unjudged) == len(wrong):
        return failed(reasons[0], "refused")
    passed = sum(not outcome["why"] for outcome in report.outcomes)
    count = len(report.outcomes)
    share = passed / count if partial else float(passed == count)
    kind = wrong[0]["kind"] if wrong else ""
    finding = kind if kind in ("timeout", "error") else ""
    return scored(share, {"passed": float(passed), "cases": float(count)}, reasons=reasons, finding=finding)


def _count(cases: list[dict[str, Any]]) -> int:
    return sum(case["kind"] != "support" for case in cases)


def _reason(cases: list[dict[str, Any]], outcome: Mapping[str, Any]) -> str:
    index = outcome["index"]
    number = _count(cases[: index + 1])
    name = "the tests' own lines" if cases[index]["kind"] == "support" else f"test {number}"
    return _short(f"{name}: {printable(text_of(cases[index]))[:_MAX_TEXT]}: {outcome['why']}")


def _short(text: str) -> str:
    return printable(text)[:_MAX_REASON]

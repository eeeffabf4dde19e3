"""Runs test cases against an answer in another process, and says of each whether it holds.

The tests stay here. What they ask of the answer goes to its process by name and arguments, and comes back as plain
data or as a handle, so that the answer meets neither an expected value nor the code that compares it.
"""

from __future__ import annotations

import builtins
import io
import sys
import time
from types import ModuleType

from rewards.code.guest import text
from rewards.code.guest.compare import same_output, same_value
from rewards.code.guest.process import Alarm, AnswerProcess, Died, Late
from rewards.code.guest.proxy import MODULES, TESTS, Answer, Uncrossable, module
from rewards.code.guest.values import Malformed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_REASON = 300
_MAX_REASONS = 20
_MAX_PRINTED = 1 << 20
#: of the time that is left for one case, so that something is left for those after it
_SHARE = 0.75


class CannotLoad(Exception):
    """The answer raises, or ends its process, when it is loaded."""


class MissingPackage(Exception):
    """The tests import what is not Python's own."""


class _Printed(io.StringIO):
    """Keeps the beginning of what is printed."""

    def write(self, text: str, /) -> int:
        return super().write(text) if self.tell() < _MAX_PRINTED else len(text)


class Tester:
    """Judges one answer.

    Args:
      request: code, prelude, setup, names and cases, as `rewards.code.request` makes them.
    """

    def __init__(self, process: AnswerProcess, alarm: Alarm, request: dict[str, Any]) -> None:
        self._process = process
        self._request = request
        self._until = time.monotonic() + request["deadline_s"]
        self._alarm = alarm
        self._loaded = 0
        self._space: dict[str, Any] = {}
        self._values: list[tuple[str, list[Any]]] = []
        self._answer: Answer | None = None
        self._broken = ""
        self._supports: list[dict[str, Any]] = []

    def judge(self) -> dict[str, Any]:
        """For each case None where it holds, or why it does not; and what kept a case from being judged."""
        cases = self._request["cases"]
        outcomes: list[dict[str, Any]] = []
        for index, case in enumerate(cases):
            outcome = {"index": index, **self._judged(case, len(cases) - index)}
            if case["kind"] != "support" or outcome["why"]:
                outcomes.append(outcome)
            if sum(1 for each in outcomes if each["why"]) > _MAX_REASONS:
                outcome["why"] = outcome["why"][:1]
        return {"outcomes": outcomes}

    def _judged(self, case: dict[str, Any], left: int) -> dict[str, Any]:
        remaining = self._until - time.monotonic()
        seconds = remaining if left == 1 else remaining * _SHARE
        started = time.monotonic()
        printed, why, kind = "", "", "failed"
        try:
            try:
                if remaining <= 0:
                    raise Late
                self._alarm.start(seconds)
                why, printed = self._try(case)
            finally:
                self._alarm.stop()
        except Late:
            self._alarm.stop()
            self._process.stop()
            why, kind = f"timeout: no result within {seconds:.1f} s", "timeout"
        except Died as error:
            why, kind = f"error: {error}", "error"
        except Malformed as error:
            self._process.stop()
            why, kind = f"error: {error}", "error"
        except Uncrossable as error:
            why, kind = f"{error}", "unjudged"
        except MissingPackage as error:
            why, kind = f"the tests need a package that the sandbox has not: {error}", "unjudged"
        except CannotLoad as error:
            self._process.stop()
            self._broken = why = f"{error}"
            kind = "error"
        except BaseException as error:  # noqa: BLE001  (whatever a test raises is its verdict)
            why, kind = _raised(error), "error" if not isinstance(error, AssertionError) else "failed"
        finally:
            self._alarm.stop()
        return {
            "why": why[:_MAX_REASON],
            "kind": kind if why else "passed",
            "seconds": round(time.monotonic() - started, 4),
            "printed": printed,
        }

    def _try(self, case: dict[str, Any]) -> tuple[str, str]:
        if case["kind"] == "program":
            return self._try_program(case)
        if self._broken:
            return self._broken, ""
        if not self._process.is_running:
            self._process.start()
        if self._loaded != self._process.number:
            self._load()
        self._refresh()
        return getattr(self, f"_try_{case['kind']}")(case), ""

    def _try_program(self, case: dict[str, Any]) -> tuple[str, str]:
        self._process.stop()
        stdin = case["stdin"].encode("utf-8", "surrogateescape")
        ended, printed, said = self._process.run(self._request["code"], stdin, case["limit"])
        output = printed.decode("utf-8", "replace")
        kept = output if case["stdout"] is None else ""
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
        if ended:
            return f"error: {last or ended}", kept
        return ("" if case["stdout"] is None else same_output(output, case["stdout"])), kept

    def _try_support(self, case: dict[str, Any]) -> str:
        try:
            why = self._try_statement(case)
        except ModuleNotFoundError as error:
            if case.get("is_import"):
                raise MissingPackage(f"{error}") from None
            raise
        self._supports.append(case)
        return why

    def _try_statement(self, case: dict[str, Any]) -> str:
        exec(compile(case["source"], f"<{TESTS}>", "exec", dont_inherit=True), self._space)
        return ""

    def _try_equal(self, case: dict[str, Any]) -> str:
        got, expected = (
            eval(compile(case[side], f"<{TESTS}>", "eval", dont_inherit=True), self._space)
            for side in ("left", "right")
        )
        return "" if got == expected else f"got {_shown(got)}, expected {_shown(expected)}"

    def _try_call(self, case: dict[str, Any]) -> str:
        got = self._function(case["fn"])(*case["args"], **case["kwargs"])
        expected = case["expected"]
        return "" if same_value(got, expected) else f"got {_shown(got)}, expected {_shown(expected)}"

    def _function(self, path: str) -> Any:
        first, *rest = path.replace("()", "").split(".")
        if not rest and first not in self._space and "Solution" in self._space:
            first, *rest = "Solution", first
        if first not in self._space:
            raise NameError(f"name {first!r} is not defined")
        target = self._space[first]
        if rest:
            target = target()
        for name in rest:
            target = getattr(target, name)
        return target

    def _load(self) -> None:
        """Loads the answer into a new process, and gives its names to the tests."""
        self._loaded = self._process.number
        answer = self._answer = Answer(self._process, set())
        try:
            for source in (self._request["prelude"], self._request["code"], self._request["classes"]):
                names = answer.load(source) if source else {}
            self._introduce(answer, names or answer.load(""))
            # Objects of a process that is gone are made anew.
            for case in self._supports:
                self._try_statement(case)
        except Late:
            raise CannotLoad("timeout: the answer was not loaded in time") from None
        except Uncrossable:
            raise
        except BaseException as error:  # noqa: BLE001  (told as what the answer did)
            raise CannotLoad(f"error: loading the answer: {_raised(error).removeprefix('error: ')}") from None

    def _introduce(self, answer: Answer, names: dict[str, list[Any]]) -> None:
        wanted = set(self._request["names"])
        answer._named |= {n for n in wanted if names.get(n, [""])[0] == "class" and n.lstrip("_")[:1].isupper()}
        used = {name: entry for name, entry in names.items() if name in wanted}
        # A function of the answer with the name of a built-in one is meant only where it is all that the tests use.
        others = {name for name in used if not hasattr(builtins, name)}
        if others:
            used = {name: entry for name, entry in used.items() if name in others}
        self._values = [(name, entry) for name, entry in used.items() if entry[0] == "value"]
        found = {name: answer.name(name, entry) for name, entry in used.items()}
        if not self._space:
            self._prepare()
        self._space.update(found)
        # An import by name looks for names that no expression of the tests holds.
        for name in MODULES:
            sys.modules[name] = module({**_Lazy(answer, names).found(), **found}, name)

    def _prepare(self) -> None:
        own = sys.modules[TESTS] = ModuleType(TESTS)
        sys.modules["pytest"] = sys.modules["rewards.code.guest.pytest_stand_in"]
        self._space = vars(own)
        sys.stdout = _Printed()
        for name in self._request["modules"]:
            self._space[name] = __import__(name)
        for name, home in self._request["helpers"].items():
            self._space[name] = getattr(__import__(home), name)

    def _refresh(self) -> None:
        """The answer's plain values as they are now: its functions may have changed them."""
        if self._answer is not None:
            for name, entry in self._values:
                self._space[name] = self._answer.name(name, entry)


class _Lazy:
    """The answer's functions and classes, for tests that import them."""

    def __init__(self, answer: Answer, names: dict[str, list[Any]]) -> None:
        self._answer, self._names = answer, names

    def found(self) -> dict[str, Any]:
        return {
            name: self._answer.name(name, entry)
            for name, entry in self._names.items()
            if entry[0] in ("function", "class", "exception")
        }


def _raised(error: BaseException) -> str:
    try:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except BaseException:  # noqa: BLE001  (an exception whose own methods raise has no text)
        said = type(error).__name__
    return said if isinstance(error, AssertionError) else f"error: {said}"


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.100}"
    except BaseException as error:  # noqa: BLE001  (such as a number with too many digits)
        return f"a {type(value).__name__} that can't be shown ({type(error).__name__})"


def report(outcome: dict[str, Any], nonce: str) -> bytes:
    """The verdict as the host reads it; the nonce was never in the answer's process."""
    return text.dumps({"nonce": nonce, **outcome})

"""Results of test runs, as other programs wrote them: pytest's JUnit XML, and the mutations that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree import ElementTree

import msgspec

from learner_jax.runtime import WeirError, printable

Status = Literal["passed", "skipped", "failed"]
#: A larger file is no result of this suite.
_MAX_BYTES = 2**28


class ResultsError(WeirError, ValueError):
    """A file holds no results of tests; says which, what was expected and how to make it."""


@dataclass(frozen=True)
class Case:
    """One test.

    Attributes:
      path: of its file, relative to the repository.
      name: with its parameters, and its class where it has one.
      seconds: wall time with set-up and teardown; what several tests share counts for the first.
    """

    path: str
    name: str
    status: Status
    seconds: float

    @property
    def folder(self) -> str:
        return PurePosixPath(self.path).parent.as_posix()


@dataclass(frozen=True)
class Run:
    """One run of the suite.

    Attributes:
      started: as the file has it; "" if it does not say.
      seconds: wall time of the whole run.
    """

    tests: tuple[Case, ...]
    started: str
    seconds: float


class Tried(msgspec.Struct, frozen=True):
    """One mutation that was tried; written by `tools.testing.mutate --json`, one a line.

    Attributes:
      noticed_by: the test that failed; None if all passed.
    """

    path: str
    line: int
    kind: str
    was: str
    now: str
    noticed_by: str | None

    @property
    def room(self) -> str:
        return PurePosixPath(self.path).parent.as_posix().replace("/", ".")


def read_run(path: Path) -> Run:
    """The run that a JUnit XML file of pytest holds.

    Raises:
      ResultsError: it can't be read, or holds none.
    """
    how = "make one with: python -m pytest --junitxml=FILE"
    try:
        root = ElementTree.fromstring(_content(path))
    except ElementTree.ParseError as error:
        raise ResultsError(f"{_shown(path)} is no XML: {printable(error)}; {how}") from error
    suites = list(root.iter("testsuite"))
    try:
        tests = tuple(_test(case) for case in root.iter("testcase"))
        seconds = sum(float(suite.get("time", "")) for suite in suites)
    except ValueError as error:
        raise ResultsError(f"{_shown(path)} is no JUnit XML of pytest: {printable(error)}; {how}") from error
    if not tests:
        raise ResultsError(f"{_shown(path)} holds no results of tests, expected JUnit XML; {how}")
    return Run(tests, _date(suites[0].get("timestamp", "") if suites else ""), seconds)


def read_tried(paths: Sequence[Path]) -> list[Tried]:
    """The mutations that files hold, each once: what a later file says of one takes the place of an earlier one's.

    Raises:
      ResultsError: a file can't be read, or a line of it is no mutation.
    """
    found: dict[tuple[str, int, str, str], Tried] = {}
    decoder = msgspec.json.Decoder(Tried)
    for path in paths:
        for number, line in enumerate(_content(path).splitlines(), start=1):
            try:
                tried = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ResultsError(
                    f"{_shown(path)}, line {number}, is no mutation: {printable(error)}; make the file with: "
                    f"python -m tools.testing.mutate --json FILE"
                ) from error
            found[tried.path, tried.line, tried.was, tried.now] = tried
    return list(found.values())


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ResultsError(f"{_shown(path)} can't be read: {printable(reason)}") from error
    if len(content) > _MAX_BYTES:
        raise ResultsError(f"{_shown(path)} has more than {_MAX_BYTES} bytes: it holds no results of tests")
    return content


def _test(case: ElementTree.Element) -> Case:
    """A class name is a module's, with a class behind it where there is one; a file that broke has only a name."""
    name = case.get("name", "")
    *parts, last = (case.get("classname") or name).split(".")
    while parts and not last.startswith("test_") and any(part.startswith("test_") for part in parts):
        name, last = f"{last}.{name}", parts.pop()
    return Case("/".join([*parts, f"{last}.py"]), name, _status(case), float(case.get("time", "")))


def _status(case: ElementTree.Element) -> Status:
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags else "passed"


def _date(timestamp: str) -> str:
    try:
        return datetime.fromisoformat(timestamp).date().isoformat()
    except ValueError:
        return ""


def _shown(path: Path) -> str:
    return printable(path)

"""The page: time by folder, the slowest tests, and the mutations that the tests noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from learner_jax.runtime import printable
from tools.testing.suite.results import Case, Run, Tried

#: Characters of a test's name and of a mutated piece of code that are shown.
_NAME, _CODE = 100, 60


def page(run: Run, tried: Sequence[Tried], *, hardware: str, command: str, slowest: int) -> str:
    """Markdown of the page.

    Args:
      hardware: where the tests ran, for people.
      command: by which the page is made.
      slowest: tests that are named.
    """
    parts = [
        "# What the tests cost and see",
        f"Made by `{command}` from a run of {run.started or 'unknown date'}. Hardware: {_text(hardware)}",
        _table(
            ["tests", "passed", "skipped", "failed", "wall time", "sum over tests"],
            [[*_counts(run.tests), _time(run.seconds), _time(_seconds(run.tests))]],
        ),
        "A test's time has its set-up in it. What several tests share counts for the first of them. Where several "
        "processes run tests at a time, the sum is more than the wall time.",
        "## Time by folder",
        _table(["folder", "tests", "time", "share"], _folders(run.tests)),
        "## Slowest tests",
        _table(["test", "time"], _slowest(run.tests, slowest)),
        "## Mutations noticed",
        *_mutations(tried),
        "[testing.md](testing.md) says what the tests prove, and what is not covered.",
    ]
    return "\n\n".join(parts) + "\n"


def _counts(tests: Iterable[Case]) -> list[str]:
    found = Counter(test.status for test in tests)
    return [str(found.total()), *(str(found[status]) for status in ("passed", "skipped", "failed"))]


def _folders(tests: Sequence[Case]) -> list[list[str]]:
    whole = _seconds(tests) or 1.0
    by_folder: dict[str, list[Case]] = {}
    for test in tests:
        by_folder.setdefault(test.folder, []).append(test)
    return [
        [_code(folder), str(len(own)), _time(_seconds(own)), f"{_seconds(own) / whole:.1%}"]
        for folder, own in sorted(by_folder.items(), key=lambda entry: -_seconds(entry[1]))
    ]


def _slowest(tests: Sequence[Case], number: int) -> list[list[str]]:
    chosen = sorted(tests, key=lambda test: -test.seconds)[:number]
    return [[_code(f"{test.path}::{test.name}", _NAME), _time(test.seconds)] for test in chosen]


def _mutations(tried: Sequence[Tried]) -> list[str]:
    if not tried:
        return ["None were tried for this page."]
    missed = sorted((one for one in tried if one.noticed_by is None), key=lambda one: (one.path, one.line))
    rows = [
        [_code(f"{one.path}:{one.line}"), one.kind, f"{_code(one.was, _CODE)} to {_code(one.now, _CODE)}"]
        for one in missed
    ]
    return [
        "Small mistakes in Weir's own code, one at a time, drawn at random: how many of them a test noticed.",
        _table(["room", "tried", "noticed", "share"], _shares(tried, lambda one: _code(one.room))),
        _table(["kind of mistake", "tried", "noticed", "share"], _shares(tried, lambda one: one.kind)),
        "Not noticed:" if missed else "Every one was noticed.",
        *([_table(["where", "kind", "mistake"], rows)] if missed else []),
    ]


def _shares(tried: Sequence[Tried], name: Callable[[Tried], str]) -> list[list[str]]:
    every = Counter(map(name, tried))
    noticed = Counter(name(one) for one in tried if one.noticed_by is not None)
    rows = [(row, every[row], noticed[row]) for row in sorted(every)]
    rows.append(("all", every.total(), noticed.total()))
    return [[row, str(count), str(seen), f"{seen / count:.0%}"] for row, count, seen in rows]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _seconds(tests: Iterable[Case]) -> float:
    return sum(test.seconds for test in tests)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _code(text: str, longest: int = 200) -> str:
    """A piece of code in a cell of a table, on one line."""
    line = printable(" ".join(text.split()))
    return f"`{_text(line if len(line) <= longest else f'{line[:longest]}...')}`"


def _text(text: str) -> str:
    """What stands in a table's cell as it is: nothing that ends the cell, or a piece of code."""
    return printable(text).replace("|", "\\|").replace("`", "'")

"""How long each file of tests takes while nothing is wrong, and that its tests pass then."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from tools.testing.mutate.trial import Tree, TrialError
from tools.testing.suite import Case, Run, read_run

#: For the tests of one room on the right code.
_LIMIT_S = 1800.0


class Times:
    """Seconds of each file of tests; those of a room without any run once for them. Safe to share between threads.

    Args:
      run: of the suite on the same code; None if there is none.
    """

    def __init__(self, run: Run | None = None) -> None:
        self._seconds: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._lock = Lock()
        self._rooms: dict[frozenset[str], Lock] = {}
        self._add(run.tests if run is not None else ())

    def seconds(self, tree: Tree, test_files: Sequence[str]) -> Mapping[str, float]:
        """Of each of these files.

        Raises:
          TrialError: a test in them does not pass.
        """
        with self._lock:
            room = self._rooms.setdefault(frozenset(test_files), Lock())
        with room:
            if untimed := [name for name in test_files if name not in self._seconds]:
                self._measure(tree, untimed)
            if failed := [self._failed[name] for name in test_files if name in self._failed]:
                raise TrialError(f"{failed[0]} does not pass on the code as it is: mend it first")
            return {name: self._seconds[name] for name in test_files}

    def _measure(self, tree: Tree, test_files: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="weir-mutate-") as folder:
            junit = Path(folder) / "junit.xml"
            failed = tree.run(test_files, _LIMIT_S, f"--junitxml={junit}").noticed_by
            if failed is not None:
                raise TrialError(f"{failed} does not pass on the code as it is: mend it first")
            ran = read_run(junit).tests if b"<testcase" in junit.read_bytes() else ()
            with self._lock:
                self._seconds |= dict.fromkeys(test_files, 0.0)  # also of those in which nothing runs by default
                self._add(ran)

    def _add(self, tests: Iterable[Case]) -> None:
        for test in tests:
            self._seconds[test.path] = self._seconds.get(test.path, 0.0) + test.seconds
            if test.status == "failed":
                self._failed.setdefault(test.path, f"{test.path}::{test.name}")

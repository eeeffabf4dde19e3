"""Runs the tests that cover a module on a copy of the repository in which the module is wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from learner_jax.runtime import WeirError
from tools.testing.mutate.sites import Mutation

#: A mutant's tests, and each one of them, may take so many times as long as on the right code, and never less than the
#: floor, in seconds. Then there is the time to start and to collect them.
_PATIENCE, _FLOOR_S, _START_S = 5.0, 120.0, 120.0
#: Exit statuses of pytest where nothing failed: all passed, nothing ran.
_PASSED = (0, 5)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", re.MULTILINE)


class TrialError(WeirError):
    """The tests can't tell right from wrong: they fail, or there are none, before anything was changed."""


@dataclass(frozen=True)
class Verdict:
    """What came of one run of tests.

    Attributes:
      noticed_by: the first test that failed, or why the run ended without one; None if all passed.
      message: of that test's failure, as far as pytest has it on one line; "" if there is none.
      seconds: wall time of the run.
    """

    noticed_by: str | None
    message: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What the tests made of one mutation."""

    mutation: Mutation
    verdict: Verdict

    @property
    def noticed(self) -> bool:
        return self.verdict.noticed_by is not None

    def to_json(self) -> dict[str, object]:
        return asdict(self.mutation) | asdict(self.verdict) | {"seconds": round(self.verdict.seconds, 1)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Outcome:
        """What `to_json` made a mapping of.

        Raises:
          KeyError: it lacks something.
        """
        mutation, verdict = ({name: told[name] for name in kind.__annotations__} for kind in (Mutation, Verdict))
        return cls(Mutation(**mutation), Verdict(**verdict))


def covering(path: str, test_files: Sequence[str]) -> list[list[str]]:
    """Test files for a module, nearest first: those named like it, then the others of its room.

    Tests mirror the packages, so that the room's tests are those in the folder of the same name below tests/. A module
    that is in no room has the tests that are named like it alone.
    """
    module = PurePosixPath(path)
    folder = PurePosixPath("tests") / module.parent
    if module.parts[0] == "tools" and not any(PurePosixPath(name).parent == folder for name in test_files):
        folder = PurePosixPath("tests/tools")
    room = [name for name in test_files if PurePosixPath(name).is_relative_to(folder)]
    own = [name for name in room if PurePosixPath(name).stem.startswith(f"test_{module.stem}")]
    rest = [name for name in room if name not in own] if len(module.parts) > 2 or not own else []
    return [group for group in (own, rest) if group]


class Tree:
    """A copy of the repository's files in which one module at a time is wrong; used by one thread.

    Args:
      repository: its root; what git doesn't ignore is copied.
      folder: where the copy is made; the caller removes it.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=repository, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (repository / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repository / name, folder / name)

    def test_files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in (self.folder / "tests").rglob("test_*.py"))

    @contextlib.contextmanager
    def wrong(self, mutation: Mutation) -> Iterator[None]:
        """Has the mistake in its module, and nothing compiled of that module before or after."""
        module = self.folder / mutation.path
        right = module.read_bytes()
        try:
            self._write(module, mutation.applied(right))
            yield
        finally:
            self._write(module, right)

    def _write(self, module: Path, content: bytes) -> None:
        module.write_bytes(content)
        for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
            compiled.unlink()

    def run(self, test_files: Sequence[str], limit_s: float, *options: str) -> Verdict:
        """Runs these tests, up to the first that fails.

        Args:
          limit_s: for all of them together.
          options: further ones of pytest.
        """
        temporary = self.folder.parent / f"{self.folder.name}-tmp"
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "TMPDIR": str(temporary),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-rfE", "-p", "no:cacheprovider"]
        begin = time.monotonic()
        with subprocess.Popen(
            [*command, *options, *test_files], cwd=self.folder, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace",
        ) as running:  # fmt: skip
            try:
                said, _ = running.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, 9)
                noticed_by = f"nothing: the tests did not end within {limit_s:.0f} s"
                return Verdict(noticed_by, "", time.monotonic() - begin)
            finally:
                _end_all(running.pid)
        shutil.rmtree(temporary, ignore_errors=True)
        seconds = time.monotonic() - begin
        if running.returncode in _PASSED:
            return Verdict(None, "", seconds)
        failed = _FAILED.search(said)
        noticed_by = failed[1] if failed else f"pytest's exit status {running.returncode}"
        return Verdict(noticed_by, (failed and failed[2]) or "", seconds)


def _end_all(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 9)  # what a test started and a broken module left behind


def try_mutation(
    mutation: Mutation, tree: Tree, seconds: Callable[[Tree, Sequence[str]], Mapping[str, float]]
) -> Outcome:
    """Runs the tests of the module's room in one process, nearest and quickest first, up to the first that fails.

    Args:
      seconds: what each of these files takes on the right code; raises TrialError where one fails there.

    Raises:
      TrialError: no test covers the module, or those that do fail on the right code.
    """
    groups = covering(mutation.path, tree.test_files())
    if not groups:
        raise TrialError(f"no test is named like {mutation.path} or lies in a folder that mirrors its room")
    took_s = seconds(tree, [name for group in groups for name in group])
    test_files = [name for group in groups for name in sorted(group, key=took_s.__getitem__)]
    limit_s = _START_S + max(_FLOOR_S, _PATIENCE * sum(took_s.values()))
    of_each_s = max(_FLOOR_S, _PATIENCE * max(took_s.values()))
    with tree.wrong(mutation):
        return Outcome(mutation, tree.run(test_files, limit_s, f"--timeout={of_each_s}"))

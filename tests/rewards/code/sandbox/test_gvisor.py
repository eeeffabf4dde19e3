"""runsc as a sandbox: the same answers get the same verdicts, nothing is left behind, and its absence is told."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from learner_jax.runtime import DoorError
from rewards.code.sandbox import SandboxError, SandboxPool, gvisor, open_pool
from rewards.code.sandbox.folders import open_folder
from rewards.code.verifier import CodeVerifier
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from rewards.verifiers import create_verifier

ANSWERS = {
    "def f(x): return x * x": ("pass", ""),
    "def f(x): return x": ("fail", ""),
    "def f(x): raise KeyError(x)": ("fail", "error"),
    "def f(x):\n    while True: pass": ("fail", "timeout"),
    "def f(x): return len(bytearray(1 << 40))": ("fail", "error"),
}


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gvisor, "_INSTALLED", ())
    monkeypatch.setenv("PATH", "/nonexistent")


def test_answers_get_the_verdicts_that_bubblewrap_gives_them(pool: SandboxPool, runsc_pool: SandboxPool) -> None:
    assert runsc_pool.walls.startswith("runsc ")

    def verdicts(pool: SandboxPool) -> list[tuple[str, str]]:
        verifier = CodeVerifier(pool=pool, deadline_s=3.0)
        with ThreadPoolExecutor(2) as threads:
            found = threads.map(lambda code: verifier.judge(f"```python\n{code}\n```", {"tests": CASES}), ANSWERS)
            return [(result.verdict, result.finding) for result in found]

    assert verdicts(runsc_pool) == verdicts(pool) == list(ANSWERS.values())


CASES = ["assert f(2) == 4"]


def test_the_kernel_that_answers_see_is_another_one(runsc_pool: SandboxPool) -> None:
    program = runsc_pool.run_program("import os; print(os.uname().release); os.listdir('/proc')", "", 20.0)
    assert program.printed.strip() not in ("", os.uname().release)
    assert program.why.startswith("error: PermissionError")


def test_nothing_is_left_of_a_sandbox_that_is_killed(runsc_pool: SandboxPool) -> None:
    """What a pool keeps is that of its warm sandboxes."""

    def kept() -> tuple[int, int]:
        states = Path(runsc_pool._tier.folder.name) / "states"  # type: ignore[attr-defined]
        processes = [child for child in psutil.Process().children(recursive=True) if "runsc" in child.name()]
        return len(list(states.iterdir())), len(processes)

    for _ in range(4):
        runsc_pool.run_program("while True: pass", "", 0.2)
    until = time.monotonic() + 10
    while kept()[0] > 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert kept()[0] <= 3
    assert kept()[1] <= 3 * 4


def test_folders_of_processes_that_were_killed_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone, alive, foreign = (tmp_path / name for name in ("weir-x-4194305-a", f"weir-x-{os.getpid()}-b", "weir-x-c"))
    for folder in (gone, alive, foreign):
        (folder / "inside").mkdir(parents=True)
    with open_folder("weir-x") as made:
        assert Path(made).stat().st_mode & 0o777 == 0o755
        assert sorted(tmp_path.iterdir()) == sorted([alive, foreign, Path(made)])


@pytest.mark.usefixtures("absent")
def test_its_absence_is_one_clear_error_and_no_other_sandbox_takes_its_place(tmp_path: Path) -> None:
    said = r'task\.sandbox is "runsc", and runsc is missing: install gVisor .*, or set task\.sandbox to "bubblewrap"'
    with pytest.raises(SandboxError, match=said):
        open_pool(num_workers=1, sandbox="runsc")
    with pytest.raises(DoorError, match=said):
        create_verifier("code", sandbox="runsc")
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "tests": ["assert f(2) == 4"]}\n')
    settings = TaskSettings(
        provider="rows", data=str(tmp_path / "rows.jsonl"), answer_column="", reward="code", sandbox="runsc"
    )
    with pytest.raises(DoorError, match=said):
        create_task(settings, seed=0)


def test_an_unknown_sandbox_is_refused() -> None:
    with pytest.raises(SandboxError, match="no sandbox is called 'docker'; known: bubblewrap, runsc"):
        open_pool(num_workers=1, sandbox="docker")


@pytest.mark.parametrize(
    ("flags", "platforms", "expected"),
    [
        ("  -overlay2 value", "kvm\nsystrap", {"--overlay2=none", "--platform=systrap"}),
        ("  -overlay\n\twrap", "kvm\nptrace", {"--overlay=false", "--platform=ptrace"}),
    ],
)
def test_options_are_those_of_the_build(tmp_path: Path, flags: str, platforms: str, expected: set[str]) -> None:
    program = tmp_path / "runsc"
    program.write_text(f"#!/bin/sh\ncase $1 in flags) echo '{flags}';; help) echo '{platforms}';; esac\n")
    program.chmod(0o755)
    assert expected <= set(gvisor._options(str(program)))

"""A crash point kills its process at its turn, and at no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from learner_jax.runtime.crash_points import CrashTrap


def trap(told: str) -> tuple[CrashTrap, list[str]]:
    killed: list[str] = []
    return CrashTrap(told, lambda: killed.append("killed")), killed


def test_a_crash_point_kills_at_its_turn_alone() -> None:
    point, killed = trap("stored:3")
    for name in ("stored", "marked", "stored"):
        point.passed(name)
    assert killed == []
    point.passed("stored")
    assert killed == ["killed"]


def test_a_crash_point_named_later_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "crash"
    point, killed = trap(f"@{file}")
    point.passed("marked")
    file.write_text("marked:2\n")
    point.passed("marked")
    assert killed == []
    assert file.exists()
    point.passed("marked")
    assert killed == ["killed"]
    assert not file.exists()


def test_a_crash_point_with_a_bad_count_is_refused() -> None:
    with pytest.raises(ValueError, match="'stored:0', expected point or point:count"):
        trap("stored:0")


def test_a_crash_point_ends_a_real_process() -> None:
    code = "from learner_jax.runtime import crash_point; crash_point('a'); print('on', flush=True); crash_point('b')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WEIR_CRASH_AT": "b"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "on\n")

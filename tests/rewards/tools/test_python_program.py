"""Python as a tool: what a program prints is told, and nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.code.sandbox import SandboxError, SandboxPool
from rewards.tools import ToolError
from rewards.tools.python_program import run_program
from rewards.tools.toolbox import BrokenToolError


def run(pool: SandboxPool, code: str, deadline_s: float = 20) -> str:
    return run_program(pool, code, deadline_s=deadline_s)


def test_what_a_program_prints_is_told(pool: SandboxPool) -> None:
    assert run(pool, "print(sum(range(10)))\nprint('x' * 3)") == "45\nxxx"
    assert run(pool, "x = 1") == "(nothing was printed)"
    assert run(pool, "print('before'); 1 / 0").startswith("before\nerror: ZeroDivisionError")
    assert "SyntaxError" in run(pool, "def")
    assert "NameError" in run(pool, "print(x)")  # nothing is left of the call before
    assert len(run(pool, "print('y' * 10**6)")) <= 70_000


def test_a_program_that_goes_on_is_ended(pool: SandboxPool) -> None:
    with pytest.raises(ToolError, match="took longer than 1 s"):
        run(pool, "while True: pass", deadline_s=1)


def test_a_machine_without_sandboxes_fails_the_episode(pool: SandboxPool) -> None:
    class Broken:
        def run_program(self, code: str, stdin: str, deadline_s: float) -> Any:
            raise SandboxError("no sandbox starts")

    with pytest.raises(BrokenToolError, match="no sandbox starts"):
        run(Broken(), "print(1)")  # type: ignore[arg-type]

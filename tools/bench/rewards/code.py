"""Answers that are code: judged in sandboxes, and run as files of code and tests by plain subprocesses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.verifiers import create_verifier
from tools.bench.rewards.sides import Progress, Side, take_turns

SANDBOX, PLAIN = "sandbox", "plain subprocess"
_TIMEOUT_S = 60.0

Answer = tuple[str, Mapping[str, Any]]


def answers(count: int) -> list[Answer]:
    """Right and wrong answers with their rows, in turns: short functions with three assertions, as in MBPP."""
    made: list[Answer] = []
    for index in range(count):
        code = f"def scaled(values, factor={index}):\n    return sorted(value * factor for value in values)\n"
        expected = [factor + index % 2 for factor in (0, index, 3 * index)]
        tests = [f"assert scaled([3, 1, 0]) == {expected}", "assert scaled([]) == []", "assert scaled([2], 2) == [4]"]
        made.append((f"```python\n{code}```", {"tests": tests}))
    return made


def compare_code(
    count: int, *, rounds: int, num_workers: int, sandbox: str = "bubblewrap", done: Progress = lambda: None
) -> dict[str, list[float]]:
    """Seconds that each side takes for all answers, a round each.

    Args:
      count: number of answers.
      num_workers: answers at a time.
      sandbox: what holds the answers.
      done: called after each side of a round.

    Raises:
      BenchmarkError: the sides disagree on an answer.
      DoorError: this machine has no sandbox.
    """
    given = answers(count)
    verifier = create_verifier("code", deadline_s=_TIMEOUT_S, num_workers=num_workers, sandbox=sandbox)

    def isolated(answer: Answer) -> bool:
        return verifier.judge(*answer).verdict == "pass"

    try:
        with ThreadPoolExecutor(num_workers) as threads:
            list(threads.map(isolated, given[:num_workers]))  # the first sandboxes are warm from here on
            sides: dict[str, Side[Answer]] = {
                SANDBOX: lambda these: list(threads.map(isolated, these)),
                PLAIN: lambda these: list(threads.map(_plain, these)),
            }
            return take_turns(sides, given, rounds=rounds, done=done)
    finally:
        verifier.close()


def _plain(answer: Answer) -> bool:
    text, row = answer
    code = text.removeprefix("```python\n").removesuffix("```")
    program = "\n".join([code, *row["tests"]])
    command = [sys.executable, "-I", "-c", program]
    return subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0

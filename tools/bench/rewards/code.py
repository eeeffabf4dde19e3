"""Answers that are code: judged in sandboxes, and run as files of code and tests by plain subprocesses."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.verifiers import create_verifier
from tools.bench import BenchmarkError

SANDBOX, PLAIN = "sandbox", "plain subprocess"
_TIMEOUT_S = 60.0

Answer = tuple[str, Mapping[str, Any]]
Progress = Callable[[], None]


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
    count: int, *, rounds: int, num_workers: int, done: Progress = lambda: None
) -> dict[str, tuple[float, ...]]:
    """Seconds that each side takes for all answers, a round each.

    Args:
      count: number of answers.
      num_workers: answers at a time.
      done: called after each side of a round.

    Raises:
      BenchmarkError: the sides disagree on an answer.
      DoorError: this machine has no sandbox.
    """
    given = answers(count)
    verifier = create_verifier("code", deadline_s=_TIMEOUT_S, num_workers=num_workers)

    def isolated(answer: Answer) -> bool:
        return verifier.judge(*answer).verdict == "pass"

    sides = {SANDBOX: isolated, PLAIN: _plain}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    try:
        with ThreadPoolExecutor(num_workers) as threads:
            list(threads.map(isolated, given[:num_workers]))  # the first sandboxes are warm from here on
            for number in range(rounds):
                verdicts = {}
                for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                    begin = time.perf_counter()
                    verdicts[name] = list(threads.map(sides[name], given))
                    seconds[name].append(time.perf_counter() - begin)
                    done()
                _agree(verdicts)
    finally:
        verifier.close()
    return {name: tuple(values) for name, values in seconds.items()}


def _plain(answer: Answer) -> bool:
    text, row = answer
    code = text.removeprefix("```python\n").removesuffix("```")
    program = "\n".join([code, *row["tests"]])
    command = [sys.executable, "-I", "-c", program]
    return subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode == 0


def _agree(verdicts: Mapping[str, Sequence[bool]]) -> None:
    if verdicts[SANDBOX] != verdicts[PLAIN]:
        differing = sum(one != other for one, other in zip(verdicts[SANDBOX], verdicts[PLAIN], strict=True))
        raise BenchmarkError(f"the sandbox and a plain run disagree on {differing} of {len(verdicts[PLAIN])} answers")

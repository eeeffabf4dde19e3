"""Final answers of mathematics: judged by the verifier `math`, and by the package math-verify where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from rewards.verifiers import create_verifier
from tools.bench.rewards.sides import Progress, Side, take_turns

VERIFIER, PEER = "verifier math", "math-verify"
_CHUNK = 50

#: (what a model said, reference)
Answer = tuple[str, str]


def answers(count: int) -> list[Answer]:
    """Right and wrong answers in turns, with a few lines of work before a boxed result, as models write them."""
    made: list[Answer] = []
    for index in range(count):
        values = (str(index), f"\\frac{{{index}}}{{7}}", f"{index}.5", f"{index}\\%")
        value, wrong = values[index % 4], values[(index + 4) % 4].replace(str(index), str(index + 1), 1)
        work = f"First we add {index} and 3, which gives {index + 3}. Then we take 3 away again.\n" * 3
        said = value if index // 4 % 2 == 0 else wrong
        made.append((f"{work}So the answer is \\boxed{{{said}}}.", value))
    return made


def compare_math(count: int, *, rounds: int, num_workers: int, done: Progress) -> dict[str, list[float]]:
    """Seconds that each side takes for all answers, a round each; without the peer where it is not installed.

    Raises:
      BenchmarkError: the sides disagree on an answer.
    """
    given = answers(count)
    judges = {VERIFIER: _judge}
    if importlib.util.find_spec("math_verify") is not None:
        judges[PEER] = _peer
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        sides: dict[str, Side[Answer]] = {name: partial(_all, pool, judge) for name, judge in judges.items()}
        for side in sides.values():
            side(given[: _CHUNK * num_workers])  # has every process import what it needs
        return take_turns(sides, given, rounds=rounds, done=done)


def _all(pool: ProcessPoolExecutor, judge: object, given: Sequence[Answer]) -> list[bool]:
    return list(pool.map(judge, given, chunksize=_CHUNK))  # type: ignore[arg-type]


def _judge(answer: Answer) -> bool:
    text, reference = answer
    return create_verifier("math").judge(text, {"answer": reference}).verdict == "pass"


def _peer(answer: Answer) -> bool:
    from math_verify import parse, verify

    text, reference = answer
    return bool(verify(parse(f"${reference}$", parsing_timeout=None), parse(text, parsing_timeout=None)))

"""The sides of the learner benchmark as processes: what they are told, and what is taken from them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.bench_batches import GOOD, TINY, small_batch
from tools.bench import BenchmarkError
from tools.bench.learner import sides, worker
from tools.bench.learner.sides import Launch, Result, Side, interleaved, parse_result, run_process, sides_of


def test_result_is_the_last_line_and_a_first_step_has_either_name() -> None:
    figures = {"step_cpu_ms": 1, "step_ms": 2, "loss": 3, "kl": 4, "grad_norm": 5, "maxrss_mb": 6, "tokens_per_s": 9}
    want = Result(step_cpu_ms=1.0, step_ms=2.0, loss=3.0, kl=4.0, grad_norm=5.0, first_step_s=7.0, maxrss_mb=6.0)
    assert parse_result("log\n" + json.dumps(figures | {"compile_s": 7}) + "\n", "x") == want
    assert parse_result(json.dumps(figures | {"first_step_s": 7}), "x") == want


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        ("", "expected a JSON line of figures at the end of trl"),
        ("done\n", r"got \['done'\]"),
        ("[1]\n", "expected a JSON line"),
        ('{"step_ms": 2, "compile_s": 1}\n', "'step_cpu_ms'"),
        (
            '{"step_cpu_ms":1,"step_ms":2,"loss":NaN,"kl":4,"grad_norm":5,"maxrss_mb":6,"compile_s":7}',
            "a figure is not finite: trl",
        ),
    ],
)
def test_output_without_figures_is_an_error(stdout: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        parse_result(stdout, "trl")


def test_process_that_fails_is_an_error_that_shows_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with pytest.raises(BenchmarkError, match=r"ended with status 1: (.|\n)*\nno such flag"):
        run_process(command, os.environ)


def test_process_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "_TIMEOUT_S", 0.2)
    with pytest.raises(BenchmarkError, match="no figures within 0 s"):
        run_process([sys.executable, "-c", "import time; time.sleep(30)"], os.environ)


def test_peers_get_the_driver_and_weir_its_worker_with_the_same_numbers(tmp_path: Path) -> None:
    launch = Launch({"trl": Path("/venv/python")}, Path("/scripts"), core=3, seed=0)
    batch, file = small_batch(), tmp_path / "b.npz"
    theirs = launch.command(Side("trl", "trl", ("--attn", "eager")), TINY, batch, file, warmup=2, steps=4)
    ours = launch.command(Side("weir", "weir"), TINY, batch, file, warmup=2, steps=4)
    assert theirs[:2] == ["/venv/python", "-P"]
    before, flags = theirs[: theirs.index("--")], theirs[theirs.index("--") + 1 :]
    assert before[3:] == ["--script", "/scripts/peer_trl_step.py", "--batch", str(file), "--core", "3"]
    assert flags[-2:] == ["--attn", "eager"]
    assert flags[flags.index("--seq") + 1] == "15"
    parsed = worker.parse(ours[3:])
    assert (parsed.core, parsed.steps, parsed.hidden, parsed.vocab) == (3, 4, 16, 37)
    for flag in ("--steps", "--warmup", "--seed", "--hidden", "--vocab", "--tied"):
        assert flag in flags
        assert flag in ours


def test_sides_at_their_best_are_the_peers_on_a_trimmed_batch() -> None:
    assert [side.name for side in sides_of(["weir", "tunix", "trl"], best=False)] == ["weir", "tunix", "trl"]
    best = sides_of(["weir", "tunix", "trl"], best=True)
    assert [(side.name, side.trimmed) for side in best[3:]] == [("tunix, best", True), ("trl, best", True)]


def test_rounds_begin_with_another_side_each() -> None:
    calls: list[str] = []

    def run(side: Side) -> Result:
        calls.append(side.name)
        return dataclasses.replace(GOOD, step_ms=float(len(calls)))

    results = interleaved([Side(name, name) for name in "abc"], run, rounds=3)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert [r.step_ms for r in results["c"]] == [3.0, 5.0, 7.0]

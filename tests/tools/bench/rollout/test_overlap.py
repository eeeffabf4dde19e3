"""The overlap benchmark: what it compares, and that its processes run where it says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools.bench.__main__ import main
from tools.bench.rollout import overlap
from tools.bench.rollout.overlap import Round


def a_round(**seconds: float) -> Round:
    given = {"sampling_s": 0.9, "training_s": 0.5, "asynchronous_s": 1.0, "synchronous_s": 1.6}
    return Round(**(given | seconds), learner_idle=0.4, rollout_idle=0.1)


def test_the_slower_half_alone_is_what_a_run_is_held_against() -> None:
    assert a_round().overlap == pytest.approx(0.9)
    assert a_round(training_s=0.95).overlap == pytest.approx(0.95)


def test_the_verdict_is_of_the_median_and_shows_the_synchronous_run_beside_it() -> None:
    rounds = [a_round(), a_round(asynchronous_s=0.5), a_round(asynchronous_s=2.0)]
    shown = overlap.verdict(rounds)
    assert "alone / asynchronous: 0.900" in shown
    assert "(aim 0.9): met" in shown
    assert "synchronous / asynchronous: 1.60" in shown
    assert "NOT met" in overlap.verdict([a_round(asynchronous_s=1.01)])


def test_seconds_per_step_leave_out_the_first_steps() -> None:
    steps = [{"event": "step", "t": t} for t in (10.0, 17.0, 18.0, 20.0, 21.0)]
    assert overlap._step_s(steps, skip=2) == pytest.approx(4 / 3)


def test_processes_are_pinned_and_this_one_is_not_left_so() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    with overlap._pinned(1):
        command = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert out.split() == [str(cores[1])]
    assert sorted(os.sched_getaffinity(0)) == cores


def test_settings_that_measure_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["overlap", "--steps", "8", "--skip", "8"])
    assert "--skip 8: expected fewer than --steps 8" in capsys.readouterr().err

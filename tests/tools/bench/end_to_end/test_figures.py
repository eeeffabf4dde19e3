"""What is made of a run's steps and samples: means without the first steps, without pauses, by process."""

from __future__ import annotations

import pytest

from tools.bench import BenchmarkError
from tools.bench.end_to_end.figures import Figures, Run, Skill, Step, figures, run_of
from tools.bench.processes import Sample

MIB = 2**20


def samples(until: float, *, learner: float = 0.5, server: float = 0.25, machine: float = 1.0) -> list[Sample]:
    """One a second: each role uses so many CPU seconds a second, and the machine as a whole so many."""
    return [
        Sample(
            t=float(t),
            cpu_s={"learner": learner * t, "vLLM server": server * t},
            memory={"learner": t * MIB, "vLLM server": 2 * MIB} if t % 2 == 0 else None,
            load=3.0,
            machine_s=1000 + machine * t,
        )
        for t in range(int(until) + 1)
    ]


def a_run(*times: float, skills: tuple[Skill, ...] = (), **rates: float) -> Run:
    steps = tuple(Step(number, t, tokens=100, reward=number / 10) for number, t in enumerate(times, start=1))
    return Run(launched=1.0, steps=steps, skills=skills, samples=tuple(samples(max(times) + 1, **rates)))


def measured(run: Run, skip: int = 1, last: int = 100, target: float | None = None) -> Figures:
    return figures(run, skip=skip, last=last, target=target)


def test_first_steps_are_left_out_and_so_are_those_after_the_last_one() -> None:
    found = measured(a_run(10, 20, 22, 26, 50), skip=2, last=4)
    assert found.step_walls == (2, 4)
    assert found.step_wall == 3
    assert found.steps == 2
    assert found.tokens_per_s == pytest.approx(200 / 6)


def test_cpu_seconds_are_means_over_the_same_steps_by_role() -> None:
    found = measured(a_run(10, 20, 22, 26), skip=2)
    assert found.step_cpu == pytest.approx({"learner": 1.5, "vLLM server": 0.75})
    assert found.cpu == pytest.approx(2.25)


def test_cpu_between_two_samples_is_shared_out_in_time() -> None:
    found = measured(a_run(10, 20.5, 21.25, 22), skip=2)
    assert found.step_cpu["learner"] == pytest.approx(0.375)


def test_evaluations_that_training_waits_for_count_in_neither_time() -> None:
    waited = Skill(step=3, t=25.0, paused_s=3.0, accuracy=0.5, mean_score=0.5)
    found = measured(a_run(10, 20, 22, 26, skills=(waited,)), skip=2)
    assert found.step_walls == (2, 1)
    assert found.step_cpu["learner"] == pytest.approx(0.75)
    assert found.tokens_per_s == pytest.approx(200 / 3)


def test_evaluations_beside_training_change_nothing() -> None:
    beside = Skill(step=3, t=25.0, paused_s=0.0, accuracy=0.5, mean_score=0.5)
    assert measured(a_run(10, 20, 22, 26, skills=(beside,))).step_walls == (10, 2, 4)


def test_the_time_to_the_target_counts_from_the_launch_to_the_first_evaluation_that_reaches_it() -> None:
    skills = tuple(Skill(step, t, 0.0, a, a) for step, t, a in ((0, 5, 0.3), (2, 21, 0.59), (3, 25, 0.6), (4, 30, 0.9)))
    run = a_run(10, 20, 22, 26, skills=skills)
    assert measured(run, target=0.6).target == (24.0, 3)
    assert measured(run, target=0.95).target is None
    assert measured(run).target is None
    assert measured(run).skills[1] == (2, 20.0, 0.59, 0.59)


def test_memory_is_that_of_the_moment_when_all_together_were_largest() -> None:
    assert measured(a_run(10, 20, 22, 26)).memory == {"learner": 26 * MIB, "vLLM server": 2 * MIB}


def test_what_others_used_is_the_machines_time_without_ours() -> None:
    assert measured(a_run(10, 20, 22, 26, machine=1.9)).others == pytest.approx(1.15)
    assert measured(a_run(10, 20, 22, 26, machine=0.5)).others == 0


def test_the_first_step_counts_from_the_launch() -> None:
    assert measured(a_run(10, 20, 22)).first_step == 9


def test_too_few_steps_are_an_error_that_names_the_settings() -> None:
    with pytest.raises(BenchmarkError, match=r"2 steps from 3 to 100, expected 3 or more: raise --steps"):
        measured(a_run(10, 20, 22, 26), skip=3)


def test_events_of_weir_and_of_peers_are_read_alike_and_a_repeated_step_counts_as_it_came_last() -> None:
    records = [
        {"event": "published", "version": 1},
        {"event": "step", "step": 2, "t": 4.0, "num_tokens": 7, "reward": None},
        {"event": "step", "step": 1, "t": 2.0, "num_tokens": 5, "reward": 0.25},
        {"event": "heldout", "step": 0, "t": 3.0, "accuracy": 0.5, "mean_score": 0.75},
        {"event": "heldout", "step": 1, "t": 6.0, "accuracy": 0.5, "mean_score": 0.75, "paused_s": 1.5},
        {"event": "step", "step": 2, "t": 5.0, "num_tokens": 9},
    ]
    run = run_of(records, [], launched=1.0)
    assert run.steps == (Step(1, 2.0, 5, 0.25), Step(2, 5.0, 9, None))
    assert [skill.paused_s for skill in run.skills] == [0.0, 1.5]


def test_what_looking_at_the_first_step_takes_is_no_part_of_the_run() -> None:
    records = [
        {"event": "first_step", "t": 9.0, "loss": 0.0, "grad_norm": 1.0, "paused_s": 5.0},
        *({"event": "step", "step": step, "t": 10.0 + step, "num_tokens": 7} for step in range(4)),
    ]
    assert measured(run_of(records, samples(20), launched=1.0)).first_step == 4.0

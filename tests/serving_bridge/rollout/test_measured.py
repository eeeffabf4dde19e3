"""A curriculum by what the policy solves: what is always or never solved is asked rarely, also after a restart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from learner_jax.contracts import ContractError
from serving_bridge.queue import Pace, ProblemOutcome, TrajectoryQueue
from serving_bridge.rollout import LeaveOut
from serving_bridge.text import Tokenizer
from tests.support.queue_engines import Place, clock, execute, place, queue
from tests.support.rollout_bench import Bench
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import AdditionTask, FakeReplica
from tests.support.trajectories import make_group

__all__ = ["clock", "place", "queue"]  # fixtures


def put(queue: TrajectoryQueue, index: int, key: int, *, alike: bool) -> int:
    outcomes = {index: ProblemOutcome(key, alike)}
    return queue.producer.put([(index, make_group(f"run/{index}"))], outcomes=outcomes)


def test_groups_in_a_row_are_counted_once_each_and_survive_a_restart(place: Place) -> None:
    first = place.open()
    assert first.producer.alike_groups(5) == 0
    for index in range(3):
        put(first, index, 5, alike=True)
    assert first.producer.alike_groups(5) == 3
    assert put(first, 2, 5, alike=True) == 0, "a group that is known"
    assert place.open().producer.alike_groups(5) == 3
    put(first, 3, 5, alike=False)
    assert first.producer.alike_groups(5) == 0
    put(first, 4, 5, alike=True)
    assert first.producer.alike_groups(5) == 1
    assert first.producer.alike_groups(-(2**63)) == 0


def test_a_group_that_is_refused_is_not_counted(queue: TrajectoryQueue) -> None:
    with pytest.raises(ContractError):
        queue.producer.put([(0, make_group("run/0"))], worker="w", outcomes={0: ProblemOutcome(5, True)})
    assert queue.producer.alike_groups(5) == 0


def test_a_row_that_means_nothing_leaves_nothing_out(queue: TrajectoryQueue) -> None:
    put(queue, 0, 5, alike=True)
    for column, value in (("alike", -3), ("prompt_index", -1)):
        execute(queue, f"UPDATE problems SET {column} = ?", (value,))
        assert queue.producer.alike_groups(5) == 0


class FewProblems(AdditionTask):
    """Four problems in turn."""

    def problem(self, split: Any, index: int) -> Any:
        return super().problem(split, index % 4)


@pytest.mark.parametrize(("kept_share", "asked"), [(0.0, 4), (1.0, 12)])
def test_problems_that_are_never_solved_are_passed_over(
    kept_share: float, asked: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pace = Pace(max_staleness=20, groups_per_step=1, total_steps=12)
    bench = Bench(tmp_path, tokenizer, FakeReplica(stop=0.9), pace=pace, task=FewProblems(), concurrent_groups=1)
    bench.worker.leave_out = {"": LeaveOut(groups=1, kept_share=kept_share)}
    bench.ready()
    bench.run(lambda: bench.total("groups") + bench.total("left_out_prompts") >= 12)
    asked_of = Counter(row[0] % 4 for row in execute(bench.queue, "SELECT prompt_index FROM groups"))
    assert bench.total("groups") >= asked
    if kept_share == 0:
        alike = dict(execute(bench.queue, "SELECT key, alike FROM problems"))
        assert bench.total("left_out_prompts") > 0
        assert len(alike) == len(asked_of) == 4
        assert all(count == 1 for count in alike.values() if count), "left out from the first group on"

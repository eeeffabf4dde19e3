"""The simulation keeps its promises: seeds replay exactly, faults happen, and bugs put in on purpose are found."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serving_bridge.queue import claims
from tools.testing.simulate.__main__ import mode_of
from tools.testing.simulate.loop import Process, SimulatedLoop, StalledError
from tools.testing.simulate.mistakes import Mistake, MistakeError, made, read_mistakes, try_mistake
from tools.testing.simulate.run import Outcome, simulate


def test_a_run_leaves_nothing_behind():
    def num_objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    runs(range(2))
    before = num_objects()
    runs(range(2))
    assert num_objects() - before < 2000  # of one run, more than ten thousand


def runs(seeds: Sequence[int]) -> list[Outcome]:
    return [simulate(seed, mode_of(seed, None)) for seed in seeds]


def test_nothing_is_violated_whatever_goes_wrong():
    outcomes = runs(range(36))
    assert [(o.seed, o.mode, o.violation) for o in outcomes if o.violation] == []
    assert all(outcome.finished for outcome in outcomes if outcome.mode == "liveness")
    happened = sum((Counter(outcome.counts) for outcome in outcomes), Counter())
    for fault in (
        "kill",
        "kill_engine",
        "stop",
        "stop_engine",
        "partition",
        "disturb",
        "damage",
        "second_learner",
        "power failure",
    ):
        assert happened[fault] > 3, happened
    assert sum(count for what, count in happened.items() if what.startswith("crash")) > 5
    assert happened["round: unfit"] > 10
    assert happened["round: rejected"] > 1
    assert sum(outcome.trained for outcome in outcomes) > 60


@pytest.mark.soak
def test_nothing_is_violated_in_ten_thousand_seeds():
    for seed in range(1_000_000, 1_010_000):
        outcome = simulate(seed, mode_of(seed, None))
        assert not outcome.violation, (seed, outcome.mode, outcome.violation)


def test_a_run_without_faults_trains_every_step_once():
    outcome = simulate(0, "liveness", faults=False)
    assert (outcome.violation, outcome.finished, outcome.trained) == ("", True, 4)
    assert outcome.virtual_s < 10


def test_a_seed_gives_the_same_run_bit_by_bit_also_in_another_process():
    here = simulate(17, "liveness")
    assert simulate(17, "liveness") == here
    assert simulate(19, "liveness").trace_hash != here.trace_hash
    command = [sys.executable, "-m", "tools.testing.simulate", "--seed", "17", "--mode", "liveness"]
    other = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=300
    )
    assert other.returncode == 0, other.stderr
    assert "never awaited" not in other.stderr  # of what was dropped with a killed process
    assert here.trace_hash in other.stdout


# Mistakes put in on purpose: the whole list is for the soak; here are those that one seed or two notice.

MISTAKES = {mistake.name: mistake for mistake in read_mistakes(Path(__file__).with_name("protocol_mutations.toml"))}


@pytest.mark.parametrize(
    ("name", "invariant"),
    [
        ("payload name not synced", "payload not on the disk"),
        ("payload row never freed", "payload kept"),
        ("tensors not synced", "manifest before files"),
        ("name of durable files not synced", "version not on the disk"),
        ("acknowledgement before the checkpoint", "acknowledged before the checkpoint"),
        ("slot of a failed request not given back", "slots"),
    ],
)
def test_a_mistake_is_noticed_by_the_invariant_that_it_breaks(name: str, invariant: str):
    noticed = try_mistake((MISTAKES[name], 0, 12))
    assert noticed.violation.startswith(f"{invariant}: ")


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_every_mistake_can_still_be_made(mistake: Mistake):
    with made(mistake):
        pass  # it raises where the code is another one by now


def test_a_mistake_is_unmade_after_the_trial():
    mistake = MISTAKES["waiting groups not counted"]
    code = claims.room.__code__
    with made(mistake):
        assert claims.room.__code__ != code
    assert claims.room.__code__ == code


def test_a_mistake_in_text_that_is_no_longer_there_is_refused():
    mistake = MISTAKES["waiting groups not counted"]
    with pytest.raises(MistakeError, match="0 times"), made(replace(mistake, was="no such text")):
        raise AssertionError
    with pytest.raises(MistakeError, match="no function"), made(replace(mistake, now=mistake.was)):
        raise AssertionError


@pytest.mark.soak
def test_nine_in_ten_protocol_mistakes_are_noticed_within_three_hundred_seeds():
    counted = [mistake for mistake in MISTAKES.values() if not mistake.masked_by]
    noticed = [each for each in (try_mistake((mistake, 0, 1000)) for mistake in counted) if each.violation]
    assert len(counted) >= 45
    assert len(noticed) >= 0.9 * len(counted)
    assert sum(each.num_seeds for each in noticed) / len(noticed) <= 300


# The loop.


def test_a_killed_process_never_runs_again_and_a_stopped_one_runs_late():
    loop = SimulatedLoop()
    seen: list[tuple[str, float]] = []

    async def work(name: str) -> None:
        try:
            for _ in range(4):
                seen.append((name, loop.time()))
                await asyncio.sleep(1)
        finally:
            seen.append((f"{name} ends", loop.time()))

    async def world() -> None:
        killed, stopped = Process("killed", loop), Process("stopped", loop)
        killed.run_main(work("killed"))
        stopped.run_main(work("stopped"))
        await asyncio.sleep(1.5)
        stopped.stop(3)
        killed.kill()
        assert await stopped.ended is None

    loop.run_until_complete(loop.create_task(world()))
    assert [at_s for name, at_s in seen if name == "stopped"] == pytest.approx([0, 1, 4.5, 5.5], abs=1e-4)
    assert [name for name, at_s in seen if at_s > 1.5] == ["stopped", "stopped", "stopped ends"]
    loop.abandon()


def test_a_standstill_is_an_error_and_not_a_hang():
    loop = SimulatedLoop()

    async def forever() -> None:
        await loop.create_future()

    with pytest.raises(StalledError):
        loop.run_until_complete(loop.create_task(forever()))
    loop.abandon()


def test_tasks_that_ended_are_forgotten_and_those_that_did_not_are_unwound():
    loop = SimulatedLoop()
    unwound: list[int] = []

    async def nothing() -> None:
        await asyncio.sleep(0)

    async def forever(number: int) -> None:
        try:
            await loop.create_future()
        finally:
            unwound.append(number)

    async def world() -> None:
        waiting = [loop.create_task(forever(number)) for number in range(3)]
        for _ in range(3000):
            await loop.create_task(nothing())
        assert len(waiting) == 3

    loop.run_until_complete(loop.create_task(world()))
    assert len(loop._tasks) < 600
    loop.abandon()
    assert unwound == [0, 1, 2]

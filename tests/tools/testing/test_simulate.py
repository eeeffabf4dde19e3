"""The simulation keeps its promises: seeds replay exactly, faults happen, and bugs put in on purpose are found."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from learner_jax.ledger.ledger import Ledger
from learner_jax.runtime.waits import Wait
from serving_bridge.fleet import weight_round
from serving_bridge.queue import claims as queue_claims
from serving_bridge.queue import rows as queue_rows
from serving_bridge.queue.consumer import QueueConsumer
from serving_bridge.queue.producer import QueueProducer
from tools.testing.simulate.__main__ import mode_of
from tools.testing.simulate.loop import Process, SimulatedLoop, StalledError
from tools.testing.simulate.run import Outcome, simulate

Mutation = Callable[[pytest.MonkeyPatch], None]


def test_a_run_leaves_nothing_behind():
    def num_objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    runs(range(4))
    before = num_objects()
    runs(range(4))
    assert num_objects() - before < 2000  # of one run, more than ten thousand


def runs(seeds: Sequence[int]) -> list[Outcome]:
    return [simulate(seed, mode_of(seed, None)) for seed in seeds]


def test_nothing_is_violated_whatever_goes_wrong():
    outcomes = runs(range(60))
    assert [(o.seed, o.mode, o.violation) for o in outcomes if o.violation] == []
    assert all(outcome.finished for outcome in outcomes if outcome.mode == "liveness")
    happened = sum((Counter(outcome.counts) for outcome in outcomes), Counter())
    for fault in ("kill", "kill_engine", "stop", "stop_engine", "partition", "disturb", "damage", "second_learner"):
        assert happened[fault] > 10, happened
    assert sum(count for what, count in happened.items() if what.startswith("crash")) > 10
    assert happened["round: unfit"] > 20
    assert happened["round: rejected"] > 5
    assert sum(outcome.trained for outcome in outcomes) > 150


@pytest.mark.soak
def test_nothing_is_violated_in_ten_thousand_seeds():
    for seed in range(1_000_000, 1_010_000):
        outcome = simulate(seed, mode_of(seed, None))
        assert not outcome.violation, (seed, outcome.mode, outcome.violation)


def test_a_run_without_faults_trains_every_step_once():
    outcome = simulate(0, "liveness", faults=False)
    assert (outcome.violation, outcome.finished, outcome.trained) == ("", True, 6)
    assert outcome.virtual_s < 10


def test_a_seed_gives_the_same_run_bit_by_bit_also_in_another_process():
    here = simulate(17, "liveness")
    assert simulate(17, "liveness") == here
    assert simulate(19, "liveness").trace_hash != here.trace_hash
    command = [sys.executable, "-m", "tools.testing.simulate", "--seed", "17", "--mode", "liveness"]
    other = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=60
    )
    assert other.returncode == 0, other.stderr
    assert "never awaited" not in other.stderr  # of what was dropped with a killed process
    assert here.trace_hash in other.stdout


# Bugs put in on purpose.


def acknowledged_before_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    mark_trained = QueueConsumer.mark_trained

    def mark(self: QueueConsumer, group_ids: Sequence[str], **numbers: Any) -> None:
        mark_trained(self, group_ids, **numbers)
        self.acknowledge(group_ids)

    patch.setattr(QueueConsumer, "mark_trained", mark)


def a_gate_that_lets_one_more_through(patch: pytest.MonkeyPatch) -> None:
    room = queue_claims.dispatch_room
    patch.setattr(queue_claims, "dispatch_room", lambda pace, **numbers: room(pace, **numbers) + 1)


def staleness_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        queue_rows,
        "is_stale",
        lambda *, trained_version, oldest_version, max_staleness: trained_version - oldest_version > max_staleness + 1,
    )


def a_zombie_learner_that_is_not_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(QueueConsumer, "_require_epoch", lambda self, session, **options: None)


def healthy_without_a_probe(patch: pytest.MonkeyPatch) -> None:
    async def prove(self: Any) -> None:
        """Believes the weights."""

    patch.setattr(weight_round.WeightRound, "_prove", prove)


def a_pause_that_ends_whatever_the_weights_are(patch: pytest.MonkeyPatch) -> None:
    async def may_serve(self: Any) -> bool:
        return True

    patch.setattr(weight_round.WeightRound, "_may_serve", may_serve)


def a_recovery_that_gives_nothing_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queue_rows, "recover", lambda session, consumed, **numbers: [])


def claims_that_never_run_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queue_claims, "expired", lambda *arguments: [])
    patch.setattr(QueueProducer, "resume_claims", lambda self, worker: [])


def requests_without_a_bound(patch: pytest.MonkeyPatch) -> None:
    real = aiohttp.ClientTimeout

    @asynccontextmanager
    async def bound(self: Wait) -> AsyncIterator[None]:
        yield

    patch.setattr(aiohttp, "ClientTimeout", lambda total: real(total=None))
    patch.setattr(Wait, "bound", bound)


def a_ledger_that_acknowledges_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """What was trained on since the save began goes with what the save holds."""
    committed = Ledger.committed

    def all_of_it(self: Ledger) -> tuple[str, ...]:
        committed(self)
        return self.position(prompt_cursor=0).consumed_group_ids

    patch.setattr(Ledger, "committed", all_of_it)


def a_ledger_that_saves_no_consumed_groups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "trained_on", lambda self, ids, report=Ledger.trained_on: report(self, []))


MUTATIONS: dict[Mutation, str] = {
    a_ledger_that_acknowledges_before_the_commit: "is lost",
    a_ledger_that_saves_no_consumed_groups: "trained on twice|neither acknowledged",
    acknowledged_before_the_checkpoint: "is lost",
    a_gate_that_lets_one_more_through: "the gate allows",
    staleness_off_by_one: r"lags \d versions",
    a_zombie_learner_that_is_not_refused: "trained on twice|lost|neither acknowledged",
    healthy_without_a_probe: "under the name of version",
    a_pause_that_ends_whatever_the_weights_are: "nothing has proven|under the name",
    a_recovery_that_gives_nothing_back: "neither acknowledged|from leased to|not finished",
    claims_that_never_run_out: "not finished",
    requests_without_a_bound: "waits for|not finished",
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_bug_put_in_on_purpose_is_found_within_a_hundred_seeds(mutation: Mutation, monkeypatch: pytest.MonkeyPatch):
    mutation(monkeypatch)
    found = next((o for o in (simulate(seed, mode_of(seed, None)) for seed in range(100)) if o.violation), None)
    assert found is not None
    assert re.search(MUTATIONS[mutation], found.violation), found
    monkeypatch.undo()
    assert not simulate(found.seed, found.mode).violation


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

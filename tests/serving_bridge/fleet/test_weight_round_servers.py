"""Servers that stop, hang or are killed amid a round.

The last file of those that share the servers (tests/support/shared_servers.py): it ends them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving_bridge.access import SWAP_ROUTE
from serving_bridge.fleet.weight_round import run_round
from serving_bridge.processes.guard import descendants
from serving_bridge.vllm.client import Completion
from tests.support.meddling import meddling
from tests.support.weight_world import PROMPTS, SETTINGS, World

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

#: one world for all tests of rounds: starting it takes longer than they do
pytest_plugins = ["tests.support.weight_fixtures"]


def process_tree(root: int) -> list[int]:
    return [root, *descendants(root)]


def alive(pids: Sequence[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append(pid)
    return found


def test_stop_lets_answers_finish_and_leaves_no_process(world: World):
    world.update(world.model_b)
    assert world.replica._process is not None
    pids = process_tree(world.replica._process.pid)
    assert len(pids) >= 3, "guard, API server and engine core"

    async def stop_amid_answers() -> list[Completion]:
        sampling = asyncio.create_task(
            world.client.generate(PROMPTS[0], n=4, max_tokens=150, stop_token_ids=[], timeout_s=60)
        )
        while await world.client.num_requests() == 0:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(world.replica.stop())
        answers = await sampling
        await stopping
        return answers

    answers = world.run(stop_amid_answers())
    assert [len(answer.tokens) for answer in answers] == [150] * 4
    assert world.replica.exit_status() == 0
    assert alive(pids) == []


def test_a_replica_out_of_reach_is_unfit(world: World):
    outcome = world.run(run_round(world.client, world.publish(world.model_b), SETTINGS))
    assert outcome.status == "unfit"
    assert "Cannot connect" in (outcome.error or "")


def test_a_server_that_hangs_inside_the_pause_is_unfit_in_bounded_time(world: World):
    fresh = world.fresh
    pids = process_tree(world.other.supervisor.pid)[1:]

    async def hang(route: str) -> None:
        if route == SWAP_ROUTE:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)

    client = meddling(fresh, world.session, before=hang, control_timeout_s=0.3)
    started = time.monotonic()
    try:
        outcome = world.run(run_round(client, world.publish(world.model_a), SETTINGS))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert outcome.status == "unfit"
    assert "no answer within 0.3 s" in (outcome.error or "")
    assert time.monotonic() - started < 5


def test_kill_9_of_the_supervising_process_amid_a_round_leaves_no_server_and_an_unfit_replica(world: World):
    fresh = world.fresh
    pids = process_tree(world.other.supervisor.pid)
    assert len(pids) >= 4, "supervisor, guard, API server and engine core"

    async def kill(route: str) -> None:
        if route != SWAP_ROUTE:
            return
        os.kill(world.other.supervisor.pid, signal.SIGKILL)
        world.other.supervisor.wait()
        deadline = time.monotonic() + 40
        while left := alive(pids):
            assert time.monotonic() < deadline, f"processes {left} are still there"
            await asyncio.sleep(0.1)

    client = meddling(fresh, world.session, after=kill)
    outcome = world.run(run_round(client, world.publish(world.model_a), SETTINGS, round_id="last"))
    assert alive(pids) == []
    assert outcome.status == "unfit"
    assert "Cannot connect" in (outcome.error or "")

"""The program that asks goes first on its core, what it starts does not, and its lateness is seen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from tools.bench.gateway.client import first_on_core, lateness

_POLICY_AND_CORES = "import os; print(os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)))"


def test_it_goes_first_on_its_core_and_what_it_starts_does_not() -> None:
    before, core = (os.sched_getscheduler(0), os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    with first_on_core(core) as is_first:
        assert os.sched_getaffinity(0) == {core}
        if not is_first:
            pytest.skip("this system lets nobody go first")
        assert os.sched_getscheduler(0) & os.SCHED_RR
        child = subprocess.run([sys.executable, "-c", _POLICY_AND_CORES], capture_output=True, text=True, check=True)
        assert child.stdout.split(maxsplit=1) == [str(os.SCHED_OTHER), f"[{core}]\n"]
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0)) == before


def test_a_system_that_lets_nobody_go_first_still_gives_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    core = max(os.sched_getaffinity(0))
    with first_on_core(core) as is_first:
        assert not is_first
        assert os.sched_getaffinity(0) == {core}


def test_a_loop_that_was_held_up_is_seen() -> None:
    async def play() -> list[float]:
        async with lateness() as late_s:
            await asyncio.sleep(0)
            began_s = time.monotonic()
            while time.monotonic() < began_s + 0.06:
                pass
            await asyncio.sleep(0.02)
        return late_s

    assert max(asyncio.run(play())) > 0.04

"""Every wait ends, says whom it waited for, and is seen while it lasts."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest

from learner_jax.runtime.waits import Waits, WaitState, WaitTimeoutError


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


class StarvedError(WaitTimeoutError):
    pass


def test_a_wait_gives_up_at_its_bound_and_names_everything() -> None:
    clock = Clock()
    with Waits(clock).waiting(
        "3 groups",
        on="rollout",
        limit_s=4.0,
        setting="learner.max_wait_s",
        hint="look at rollout.log",
        error=StarvedError,
    ) as wait:
        clock.now_s += 3.9
        wait.check()
        clock.now_s += 0.1
        expected = (
            r"^waited 4\.0 s for 3 groups from rollout and gave up \(learner\.max_wait_s = 4 s\): look at rollout\.log$"
        )
        with pytest.raises(StarvedError, match=expected):
            wait.check()


def test_progress_starts_the_bound_anew() -> None:
    clock = Clock()
    waits = Waits(clock)
    with waits.waiting("3 groups", on="rollout", limit_s=4.0) as wait:
        clock.now_s += 3.0
        wait.progressed("1 group")
        clock.now_s += 3.0
        wait.check()
        assert waits.current() == [WaitState("1 group", "rollout", 3.0, 4.0)]
        assert wait.remaining_s == 1.0
        clock.now_s += 9.0
        assert wait.remaining_s == 0.0


def test_waits_are_seen_longest_first_and_vanish_when_they_end() -> None:
    clock = Clock()
    waits = Waits(clock)
    with waits.waiting("a checkpoint", on="disk", limit_s=60):
        clock.now_s += 1.0
        with suppress(ZeroDivisionError), waits.waiting("groups", on="rollout", limit_s=60):
            assert [state.what for state in waits.current()] == ["a checkpoint", "groups"]
            raise ZeroDivisionError
        assert [state.what for state in waits.current()] == ["a checkpoint"]
    assert waits.current() == []


def test_another_thread_sees_the_wait() -> None:
    waits, seen = Waits(), []
    with waits.waiting("groups", on="rollout", limit_s=60):
        thread = threading.Thread(target=lambda: seen.extend(waits.current()))
        thread.start()
        thread.join(10)
    assert [state.on for state in seen] == ["rollout"]


def test_sleep_and_pause_never_pass_the_bound() -> None:
    waits = Waits()
    with waits.waiting("x", on="y", limit_s=0.05) as wait:
        wait.sleep(60)
        with pytest.raises(WaitTimeoutError):
            wait.sleep(60)

    async def story() -> None:
        with waits.waiting("x", on="y", limit_s=0.05) as wait:
            await wait.pause(60)
            await wait.pause(60)

    with pytest.raises(WaitTimeoutError, match=r"^waited 0\.\d s for x from y and gave up$"):
        asyncio.run(story())


def test_a_bound_cancels_what_hangs_and_lets_other_timeouts_pass() -> None:
    waits, cancelled = Waits(), []

    async def hangs() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def story(limit_s: float) -> None:
        with waits.waiting("an answer", on="replica-0", limit_s=limit_s) as wait:
            async with wait.bound():
                if limit_s > 1:
                    raise TimeoutError("of somebody else")
                await hangs()

    with pytest.raises(WaitTimeoutError, match="an answer from replica-0"):
        asyncio.run(story(0.05))
    assert cancelled == [True]
    with pytest.raises(TimeoutError, match="of somebody else"):
        asyncio.run(story(60))

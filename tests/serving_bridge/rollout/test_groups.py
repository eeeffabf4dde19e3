"""Which episodes make a group: the first by index, and spares for those that broke or came too late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

from serving_bridge.rollout.groups import GroupError, complete_group, is_final
from serving_bridge.vllm.answers import Rejected, Unreachable
from tests.support.rollout_world import virtually


async def after(seconds: float, result: Any = None) -> Any:
    await asyncio.sleep(seconds)
    if isinstance(result, BaseException):
        raise result
    return result


def group(*episodes: tuple[float, Any], size: int = 2) -> tuple[Any, float, Counter[str]]:
    """The members, when they were known, and the counts, of episodes that take so long and end so."""

    async def story() -> tuple[Any, float, Counter[str]]:
        count: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        began, running = loop.time(), asyncio.all_tasks()

        def play(index: int) -> Awaitable[Any]:
            return after(*episodes[index])

        try:
            members: Any = await complete_group(
                play, size=size, spares=len(episodes) - size, timeout_s=100, count=count
            )
        except (GroupError, ZeroDivisionError) as error:
            members = error
        assert asyncio.all_tasks() == running
        return members, loop.time() - began, count

    return virtually(story())


def test_the_first_by_index_are_taken_and_not_the_fastest() -> None:
    members, seconds, count = group((9, "slow"), (5, "b"), (1, "fast"), (1, "faster"))
    assert (members, seconds, count["spares_used"]) == (["slow", "b"], 9, 0)


def test_spares_stand_in_for_broken_and_late_ones_only() -> None:
    members, seconds, count = group((1, Unreachable("away")), (200, "late"), (3, "c"), (4, "d"))
    assert (members, seconds) == (["c", "d"], 100)
    assert (count["deadline_hits"], count["spares_used"]) == (1, 2)
    members, seconds, _ = group((1, Unreachable("away")), (2, "b"), (30, "c"), (4, "d"))
    assert (members, seconds) == (["b", "c"], 30)


def test_a_group_without_enough_is_an_error_and_a_bug_is_itself() -> None:
    error, seconds, _ = group((1, Rejected("a")), (2, "b"), (3, Rejected("c")))
    assert "1 of 3 episodes ended well, expected 2; the last broken one: Rejected('c')" in str(error)
    assert is_final(error)
    error, *_ = group((1, Rejected("a")), (2, "b"), (3, Unreachable("c")))
    assert not is_final(error)
    error, seconds, _ = group((1, ZeroDivisionError()), (50, "b"))
    assert (type(error), seconds) == (ZeroDivisionError, 1)

"""Completes groups: the first episodes by index that ended well, spares in place of those that broke or came too late.

Taking the fastest episodes instead would be a biased sample: short answers end first, so that a policy would be
trained on more of them than it gives, and on fewer long ones, whatever their reward. By index, who is in the group
is decided before anyone is slow. A spare stands in only for an episode that broke or passed its deadline. What remains
is the bias of the deadline itself, which cuts off the longest: it should be far out, and its hits are counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from learner_jax.runtime import WeirError
from serving_bridge.rollout.episodes import EpisodeError
from serving_bridge.vllm import Rejected, ReplicaError

T = TypeVar("T")

#: what breaks an episode and not the worker
BREAKS = (ReplicaError, EpisodeError, TimeoutError)


class GroupError(WeirError, RuntimeError):
    """A group has too few episodes that ended well.

    Attributes:
      is_final: trying again gives the same.
    """

    def __init__(self, message: str, *, is_final: bool):
        super().__init__(message)
        self.is_final = is_final


def is_final(error: BaseException) -> bool:
    """Whether what broke an episode, or a group, would break it again."""
    return isinstance(error, Rejected) or (isinstance(error, GroupError) and error.is_final)


async def complete_group(
    play: Callable[[int], Awaitable[T]], *, size: int, spares: int, timeout_s: float, count: Counter[str]
) -> list[T]:
    """The first `size` episodes by index among those that end well, of `size + spares` that are played at once.

    Returns as soon as they are known; whoever plays still is cancelled.

    Args:
      play: plays the episode of an index.
      timeout_s: bound on each episode.
      count: "deadline_hits" and "spares_used" are counted here.

    Raises:
      GroupError: too few ended well.
    """
    tasks = [asyncio.ensure_future(within(play(index), timeout_s, count)) for index in range(size + spares)]
    try:
        while (chosen := _chosen(tasks, size)) is None:
            running = [task for task in tasks if not task.done()]
            # Every episode ends by its deadline, so this does.
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        count["spares_used"] += sum(index >= size for index in chosen)
        return [tasks[index].result() for index in chosen]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def within(episode: Awaitable[T], timeout_s: float, count: Counter[str]) -> T:
    """The episode's result, if it comes before the deadline; TimeoutError else."""
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            return await episode
    except TimeoutError:
        count["deadline_hits"] += deadline.expired()
        raise


def _chosen(tasks: Sequence[asyncio.Future[T]], size: int) -> list[int] | None:
    """Indices of the group's episodes; None while an earlier one that still plays could be among them."""
    good = []
    for index, task in enumerate(tasks):
        if not task.done():
            return None
        error = task.exception()
        if error is None:
            good.append(index)
            if len(good) == size:
                return good
        elif not isinstance(error, BREAKS):
            raise error
    broken = [error for task in tasks if (error := task.exception()) is not None]
    raise GroupError(
        f"{len(good)} of {len(tasks)} episodes ended well, expected {size}; the last broken one: {broken[-1]!r}",
        is_final=all(is_final(error) for error in broken),
    )

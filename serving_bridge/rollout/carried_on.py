"""How a worker meets a run that has finished: it ends where the run is complete, and waits where it is carried on."""

from __future__ import annotations

from collections.abc import Callable

from learner_jax.runtime import Waits, WaitTimeoutError
from serving_bridge.queue import QueueProducer

_POLL_S = 0.25


def awaits_work(
    queue: QueueProducer, *, total_steps: int, max_wait_s: float, waits: Waits, should_stop: Callable[[], bool]
) -> bool:
    """Whether there is, or will be, work: a finished run of fewer steps than wanted is one that a learner takes up.

    Returns:
      False if the run is complete, or a stop was asked for.

    Raises:
      WaitTimeoutError: no learner took the run up within `max_wait_s`.
    """
    progress = queue.progress()
    if not progress.finished:
        return True
    if progress.completed_steps >= total_steps:
        return False
    with waits.waiting(
        f"the run, which ended after {progress.completed_steps} steps, to be carried on to {total_steps}",
        on="learner",
        limit_s=max_wait_s,
        setting="rollout.max_wait_s",
        error=WaitTimeoutError,
    ) as wait:
        wait.hint("start the learner, or leave the run as it is")
        while queue.progress().finished:
            if should_stop():
                return False
            wait.sleep(_POLL_S)
    return True

"""The learner's real ledger between queue, weight store and checkpoints that are simulated; it trains nothing.

What was consumed, which version was published at which step, what a checkpoint holds and what may be acknowledged is
the ledger's, as in `learner_jax.loop`. Here are only the effects in between: `_run`, `_resume`, `_one_step`, `_publish`
and `_save` are those of `Learner`, and `_confirm` is that of `Saving`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from learner_jax.contracts import Trajectory
from learner_jax.ledger import Ledger
from learner_jax.runtime import Waits, WaitTimeoutError
from serving_bridge.queue import QueueConsumer
from tools.testing.simulate.disks import SimulatedCheckpoints, SimulatedStore, Snapshot
from tools.testing.simulate.loop import Process

_POLL_S, _MEND_S = 0.1, 0.5
#: between two effects of a step: what the real one computes in between
_MOMENT_S = 0.001


class StarvedError(WaitTimeoutError):
    """No group came within the bound."""


@dataclass(frozen=True)
class LearnerPlan:
    """What the run asks of its learner; times are what things take."""

    steps: int
    groups_per_step: int
    max_staleness: int
    checkpoint_every: int
    max_wait_s: float
    train_s: float
    publish_s: Callable[[], float]
    commit_s: Callable[[], float]


class SimulatedLearner:
    """One life of the learner.

    Args:
      on_train: told of (groups, version trained from, history before) at each step, before anything is recorded.
      effect: called with its name before and after each effect on a disk; may end the process.
    """

    def __init__(
        self,
        process: Process,
        plan: LearnerPlan,
        *,
        queue: QueueConsumer,
        store: SimulatedStore,
        checkpoints: SimulatedCheckpoints,
        waits: Waits,
        on_train: Callable[[Sequence[Sequence[Trajectory]], int, set[str]], None],
        effect: Callable[[str], None],
        trace: Callable[..., None],
    ) -> None:
        self._process, self._plan, self._queue, self._store = process, plan, queue, store
        self._checkpoints, self._waits = checkpoints, waits
        self._on_train, self._effect, self._trace = on_train, effect, trace
        self._ledger = Ledger()
        self._stored = -1
        #: what the parameters were trained on, in place of parameters
        self._history: list[tuple[int, tuple[str, ...]]] = []
        self._takes = False
        self._saving: asyncio.Task[None] | None = None
        self._publishing: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for groups or trains, and writes no checkpoint."""
        return self._takes and not self._ledger.is_saving

    async def run(self) -> None:
        mending = asyncio.create_task(self._mend())
        try:
            await self._run()
        finally:
            mending.cancel()

    async def _mend(self) -> None:
        """The publisher's own thread: stores what it holds once more, whole, where the fleet asks for it."""
        while True:
            await asyncio.sleep(_MEND_S)
            self._process.check()
            self._store.mend(self._stored)

    async def _run(self) -> None:
        self._resume()
        await self._publish()
        await self._published()
        ledger = self._ledger
        self._queue.mark_trained([], completed_steps=ledger.completed_steps, trained_version=ledger.version)
        while ledger.completed_steps < self._plan.steps:
            await self._one_step()
        await self._save()
        await self._published()
        await self._confirm(wait=True)
        self._queue.finish()

    def _resume(self) -> None:
        ledger = self._ledger
        ledger.begun(self._checkpoints.next_life(self._queue.take_over()))
        latest = self._checkpoints.latest()
        consumed: tuple[str, ...] = ()
        cursor = 0
        if latest is not None:
            consumed, cursor = latest.position.consumed_group_ids, latest.position.prompt_cursor
            ledger.resumed(latest.position)
            self._history = list(latest.history)
        self._trace("resume", ledger.completed_steps)
        self._queue.recover(consumed, completed_steps=ledger.completed_steps, prompt_cursor=cursor)

    async def _one_step(self) -> None:
        self._takes = True
        groups = await self._take()
        await asyncio.sleep(self._plan.train_s)
        self._takes = False
        ledger = self._ledger
        version = ledger.version
        self._on_train(groups, version, {group_id for _, ids in self._history for group_id in ids})
        ledger.step_completed()
        await self._publish()
        ids = tuple(group[0].group_id for group in groups)
        await self._moment("mark trained")
        self._queue.mark_trained(ids, completed_steps=ledger.completed_steps, trained_version=ledger.version)
        await self._moment("marked trained")
        self._history.append((ledger.completed_steps, ids))
        ledger.trained_on([trajectory.trajectory_id for group in groups for trajectory in group])
        self._trace("step", ledger.completed_steps, version, ids)
        await self._confirm(wait=False)
        if ledger.completed_steps % self._plan.checkpoint_every == 0:
            await self._save()

    async def _take(self) -> list[list[Trajectory]]:
        plan, ledger, groups = self._plan, self._ledger, list[list[Trajectory]]()
        while (missing := plan.groups_per_step - len(groups)) > 0:
            with self._waiting(
                f"{missing} groups of step {ledger.completed_steps + 1}", "rollout", StarvedError
            ) as wait:
                while True:
                    report = self._queue.lease_groups(
                        missing, trained_version=ledger.version, max_staleness=plan.max_staleness
                    )
                    if report.groups:
                        break
                    await wait.pause(_POLL_S)
            groups += report.groups
            await self._moment("leased")
        return groups

    async def _publish(self) -> None:
        await self._published()
        version, step = self._store.claim(), self._ledger.completed_steps
        self._ledger.published(version)
        await self._moment("claimed")

        async def store() -> None:
            await asyncio.sleep(self._plan.publish_s())
            self._effect("publish")
            self._store.publish(version, step=step)
            self._stored = version
            self._trace("published", version, step)
            self._effect("published")

        self._publishing = asyncio.create_task(store())

    async def _published(self) -> None:
        if self._publishing is not None:
            with self._waiting(f"version {self._ledger.version} to be stored", "disk", WaitTimeoutError) as wait:
                async with wait.bound():
                    await self._publishing
            self._publishing = None

    async def _save(self) -> None:
        if self._ledger.is_saved:
            return
        await self._confirm(wait=True)
        position = self._ledger.position(prompt_cursor=self._queue.prompt_cursor())
        snapshot = Snapshot(position, tuple(self._history))

        async def commit() -> None:
            await asyncio.sleep(self._plan.commit_s())
            self._effect("commit")
            self._checkpoints.commit(snapshot)
            self._trace("committed", position.completed_steps)
            self._effect("committed")

        self._saving = asyncio.create_task(commit())
        self._ledger.save_started(position)

    async def _confirm(self, *, wait: bool) -> None:
        """Acknowledges what the last checkpoint holds, once that is committed."""
        if self._saving is None or (not wait and not self._saving.done()):
            return
        with self._waiting("the checkpoint to be committed", "disk", WaitTimeoutError) as waiting:
            async with waiting.bound():
                await self._saving
        self._saving = None
        group_ids = self._ledger.committed()
        await self._moment("acknowledge")
        self._queue.acknowledge(group_ids)
        await self._moment("acknowledged")
        self._ledger.acknowledged(group_ids)

    async def _moment(self, where: str) -> None:
        """A point at which the process may end, be stopped, or others may come between."""
        self._effect(where)
        await asyncio.sleep(_MOMENT_S)

    def _waiting(self, what: str, on: str, error: type[Exception]) -> Any:
        return self._waits.waiting(what, on=on, limit_s=self._plan.max_wait_s, setting="max_wait_s", error=error)

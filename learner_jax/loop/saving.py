"""What a run must not lose: checkpoints, what the queue forgets after them, and which one a restart goes on from.

The queue forgets a group only once a checkpoint that holds it is proven. Each life of the learner takes the queue over
before it chooses a checkpoint, and numbers its checkpoints: what an ousted life commits late is put aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from learner_jax.checkpoints import CheckpointError, Checkpoints, Position, steps_in
from learner_jax.contracts import TrajectorySource
from learner_jax.hosts import Hosts, require_shared
from learner_jax.runtime import crash_point
from learner_jax.training import Params, TrainState

Log = Callable[..., None]


@dataclass
class _Unconfirmed:
    """Trajectory ids trained on, until the queue has confirmed that it forgot them."""

    in_checkpoint: list[str] = field(default_factory=list)
    since_checkpoint: list[str] = field(default_factory=list)

    def all(self) -> tuple[str, ...]:
        return (*self.in_checkpoint, *self.since_checkpoint)


@dataclass(frozen=True)
class Start:
    """The checkpoint to go on from, and whether hashes vouch for its files."""

    step: int
    verified: bool


class Saving:
    """Saves a run's state, and has the queue forget what is safe.

    With several hosts all call it in the same order; the leader alone looks, changes the queue and renames, and all
    fail together: one that fails alone would leave the others in Orbax's barriers.

    Args:
      max_wait_s: bound of a commit.
      log: told of "checkpoint" and "ousted".
    """

    def __init__(
        self, checkpoints: Checkpoints, source: TrajectorySource, hosts: Hosts, *, max_wait_s: float, log: Log
    ) -> None:
        self._checkpoints, self._source, self._hosts = checkpoints, source, hosts
        self._max_wait_s, self._log = max_wait_s, log
        self._unconfirmed = _Unconfirmed()
        self._is_saving = False
        self._life = 0
        self.saved_step: int | None = None

    def begin(self) -> Start | None:
        """Takes the queue over, and returns the checkpoint to go on from; None if there is none.

        Raises:
          HostError: hosts see different folders.
          CheckpointError: the newest checkpoint is not whole.
        """
        require_shared(self._hosts, self._checkpoints.directory, "run.directory")

        def look() -> list[Any]:
            self._life = self._checkpoints.next_life(self._source.take_over())
            self._told(self._checkpoints.oust(self._life))
            step = self._checkpoints.latest_step()
            return [self._life, step, step is not None and self._checkpoints.check(step)]

        self._life, step, verified = self._from_leader(look, "checkpoint to go on from")
        self._checkpoints.reload()
        return None if step is None else Start(step, verified)

    def recover(self, position: Position | None) -> None:
        """Makes the queue agree with the checkpoint that was restored; None if there was none."""
        consumed: Sequence[str] = ()
        completed, cursor = 0, 0
        if position is not None:
            consumed, cursor = position.consumed_group_ids, position.prompt_cursor
            completed = self.saved_step = position.completed_steps
        if self._hosts.is_leader:
            self._source.recover(consumed, completed_steps=completed, prompt_cursor=cursor)

    def trained_on(self, trajectory_ids: Sequence[str]) -> None:
        """Remembers what the state holds since the last save."""
        self._unconfirmed.since_checkpoint += trajectory_ids

    def position(self, **fields: Any) -> Position:
        """Where the run stands; `fields` are those of `Position` that the training knows.

        Raises:
          LeaseLostError: another learner has taken over: nothing must be saved any more.
        """
        cursor = self._hosts.agree(self._source.prompt_cursor() if self._hosts.is_leader else None, "prompt cursor")
        return Position(
            prompt_cursor=cursor, consumed_trajectory_ids=self._unconfirmed.all(), life=self._life, **fields
        )

    def save(self, state: TrainState, position: Callable[[], Position], *, step: int, reference: Params | None) -> None:
        """Starts to save a step, unless it is saved; the save before is confirmed first.

        Raises:
          CheckpointError: the folder holds a step of another learner, or a save failed.
        """
        if self.saved_step == step:
            return
        started = time.monotonic()
        self.confirm(wait=True)
        self._make_way(step)
        crash_point("save")
        self._checkpoints.save(state, position(), reference=reference)
        crash_point("saving")
        self._unconfirmed = _Unconfirmed(in_checkpoint=list(self._unconfirmed.all()))
        self._is_saving, self.saved_step = True, step
        self._log("checkpoint", step=step, blocking_s=time.monotonic() - started)

    def confirm(self, *, wait: bool) -> None:
        """Has the queue forget what the last checkpoint holds, once that is proven; returns at once if it is not yet.

        Raises:
          CheckpointError: it failed, or is not what a restart would go on from; the queue keeps everything.
        """
        if not self._is_saving:
            return
        if not wait and self._hosts.agree(self._checkpoints.is_saving(), "whether a checkpoint is being saved"):
            return
        if not self._hosts.is_leader:
            self._checkpoints.wait(self._max_wait_s)
        self._from_leader(lambda: self._checkpoints.wait(self._max_wait_s), "whether the checkpoint is proven")
        self._is_saving = False
        crash_point("committed")
        groups = Position(0, 0, 0, tuple(self._unconfirmed.in_checkpoint)).consumed_group_ids
        if self._hosts.is_leader:
            self._source.acknowledge(groups)
        crash_point("acknowledged")
        self._unconfirmed.in_checkpoint = []

    def _make_way(self, step: int) -> None:
        """Puts aside what an ousted learner committed where this one is going to; refuses what another one did."""

        def look() -> None:
            self._told(self._checkpoints.oust(self._life, from_step=step))
            newest = max(steps_in(self._checkpoints.directory), default=None)
            if newest is not None and newest >= step:
                raise CheckpointError(
                    f"step {step} can't be saved: {self._checkpoints.directory} holds checkpoint {newest}, which this "
                    f"learner did not come to: let one run alone write there (run.directory); started again, it goes "
                    f"on from the newest"
                )

        self._from_leader(look, "whether there is room for a checkpoint")
        self._checkpoints.reload()

    def _told(self, ousted: list[int]) -> None:
        if ousted:
            self._log("ousted", steps=ousted, life=self._life)

    def _from_leader(self, look: Callable[[], Any], what: str) -> Any:
        """What the leader found, on every host; a CheckpointError of its own is raised on all of them."""
        value, problem, cause = None, None, None
        if self._hosts.is_leader:
            try:
                value = look()
            except CheckpointError as error:
                problem, cause = str(error), error
        value, problem = self._hosts.agree([value, problem], what)
        if cause is not None:
            raise cause
        if problem is not None:
            raise CheckpointError(problem)
        return value

"""What a run must not lose: checkpoints, what the queue forgets after them, and which one a restart goes on from.

The queue forgets a group only once a checkpoint that holds it is proven. Each life of the learner takes the queue over
before it chooses a checkpoint, and numbers its checkpoints: what an ousted life commits late is put aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from learner_jax.checkpoints import CheckpointError, Checkpoints, next_life, oust, settle, steps_in
from learner_jax.contracts import Position, TrajectorySource
from learner_jax.hosts import Hosts, require_shared
from learner_jax.ledger import Ledger
from learner_jax.runtime import crash_point
from learner_jax.training import Params, TrainState

Log = Callable[..., None]


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
      ledger: told of the life, its start, saves and what the queue has forgotten.
      max_wait_s: bound of a commit.
      log: told of "checkpoint" and "ousted".
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        source: TrajectorySource,
        hosts: Hosts,
        ledger: Ledger,
        *,
        max_wait_s: float,
        log: Log,
    ) -> None:
        self._checkpoints, self._source, self._hosts, self._ledger = checkpoints, source, hosts, ledger
        self._max_wait_s, self._log = max_wait_s, log

    def begin(self) -> Start | None:
        """Takes the queue over, and returns the checkpoint to go on from; None if there is none.

        Raises:
          HostError: hosts see different folders.
          CheckpointError: the newest checkpoint is not whole.
        """
        require_shared(self._hosts, self._checkpoints.directory, "run.directory")

        def look() -> list[Any]:
            turn = self._source.take_over()
            if (brought := self._checkpoints.bring_copy()) is not None:
                self._log("brought", step=brought)
            life = next_life(self._checkpoints.directory, turn)
            self._told(oust(self._checkpoints.directory, life), life)
            step = self._checkpoints.latest_step()
            if step is None:
                return [life, None, False]
            verified = self._checkpoints.check(step)
            settle(self._checkpoints.directory / str(step))  # before the queue forgets what it holds
            self._checkpoints.keep_copy(step)
            return [life, step, verified]

        life, step, verified = self._from_leader(look, "checkpoint to go on from")
        self._ledger.begun(life)
        self._checkpoints.reload()
        return None if step is None else Start(step, verified)

    def recover(self, position: Position | None) -> None:
        """Makes the queue agree with the checkpoint that was restored; None if there was none."""
        consumed: Sequence[str] = ()
        cursor = 0
        if position is not None:
            consumed, cursor = position.consumed_group_ids, position.prompt_cursor
            self._ledger.resumed(position)
        if self._hosts.is_leader:
            self._source.recover(consumed, completed_steps=self._ledger.completed_steps, prompt_cursor=cursor)

    def position(self, *, kl_coefficient: float) -> Position:
        """Where the run stands.

        Raises:
          LeaseLostError: another learner has taken over: nothing must be saved any more.
        """
        cursor = self._hosts.agree(self._source.prompt_cursor() if self._hosts.is_leader else None, "prompt cursor")
        return self._ledger.position(prompt_cursor=cursor, kl_coefficient=kl_coefficient)

    def save(self, state: TrainState, position: Callable[[], Position], *, reference: Params | None) -> None:
        """Starts to save the step that the ledger stands at, unless it is saved; the save before is confirmed first.

        Raises:
          CheckpointError: the folder holds a step of another learner, or a save failed.
        """
        if self._ledger.is_saved:
            return
        started, step = time.monotonic(), self._ledger.completed_steps
        self.confirm(wait=True)
        self._make_way(step)
        crash_point("save")
        saved = position()
        self._checkpoints.save(state, saved, reference=reference)
        crash_point("saving")
        self._ledger.save_started(saved)
        self._log("checkpoint", step=step, blocking_s=time.monotonic() - started)

    def confirm(self, *, wait: bool) -> None:
        """Has the queue forget what the last checkpoint holds, once that is proven; returns at once if it is not yet.

        Raises:
          CheckpointError: it failed, or is not what a restart would go on from; the queue keeps everything.
        """
        if not self._ledger.is_saving:
            return
        if not wait and self._hosts.agree(self._checkpoints.is_saving(), "whether a checkpoint is being saved"):
            return
        if not self._hosts.is_leader:
            self._checkpoints.wait(self._max_wait_s)
        self._from_leader(lambda: self._checkpoints.wait(self._max_wait_s), "whether the checkpoint is proven")
        groups = self._ledger.committed()
        crash_point("committed")
        if self._hosts.is_leader:
            self._source.acknowledge(groups)
        crash_point("acknowledged")
        self._ledger.acknowledged(groups)

    def _make_way(self, step: int) -> None:
        """Puts aside what an ousted learner committed where this one is going to; refuses what another one did."""

        def look() -> None:
            life = self._ledger.life
            self._told(oust(self._checkpoints.directory, life, from_step=step), life)
            newest = max(steps_in(self._checkpoints.directory), default=None)
            if newest is not None and newest >= step:
                raise CheckpointError(
                    f"step {step} can't be saved: {self._checkpoints.directory} holds checkpoint {newest}, which this "
                    f"learner did not come to: let one run alone write there (run.directory); started again, it goes "
                    f"on from the newest"
                )

        self._from_leader(look, "whether there is room for a checkpoint")
        self._checkpoints.reload()

    def _told(self, ousted: list[int], life: int) -> None:
        if ousted:
            self._log("ousted", steps=ousted, life=life)

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

"""The order of a learner's life: resume, publish, train, save, commit, acknowledge. Does no I/O and reads no clock."""

from __future__ import annotations

from collections.abc import Sequence

from learner_jax.contracts import Position

#: Newest policy versions whose optimizer steps a checkpoint remembers.
_VERSIONS_REMEMBERED = 256


class LedgerError(RuntimeError):
    """The learner reported something out of order: a bug of ours. Going on could lose groups or train on them twice."""


class Ledger:
    """What one life of the learner did, in the order in which it reports that.

    A life begins, resumes from a position where there is one, and publishes its first version. Each step is completed,
    published, and then reported with what it was trained on. Saves begin between steps and are committed later, also
    after more steps; what a committed save holds is then acknowledged. The learner does the work; each method is called
    once the work that it is named for is done, and raises `LedgerError` out of order.

    Attributes:
      life: number of this life, 0 before it has begun.
      completed_steps: optimizer steps behind the parameters.
      version: policy version that they were published as, -1 before this life has published.
    """

    def __init__(self) -> None:
        self.life = 0
        self.completed_steps = 0
        self.version = -1
        self._steps_of_versions: dict[int, int] = {}
        self._saved_step: int | None = None
        self._is_published = False
        self._is_recorded = True
        #: a save that was started and is not committed yet
        self._saving: Position | None = None
        #: what the queue may forget and has not confirmed yet
        self._committed: Position | None = None
        self._in_checkpoint: tuple[str, ...] = ()
        self._since_checkpoint: list[str] = []

    @property
    def is_saving(self) -> bool:
        """Whether a save was started and is not committed yet."""
        return self._saving is not None

    @property
    def is_saved(self) -> bool:
        """Whether the step that the learner stands at is saved, or is being saved."""
        return self._saved_step == self.completed_steps

    def begun(self, life: int) -> None:
        """A life has begun; `life` is larger than those of all positions that it may resume from."""
        _require(self.life == 0, f"life {life} begins, and {self.life} has begun already")
        _require(life > 0, f"life {life} begins, expected 1 or above")
        self.life = life

    def resumed(self, position: Position) -> None:
        """The state of a checkpoint was restored; what it consumed is for the queue to forget, and for nobody here."""
        _require(self.life > 0, "a position is resumed from before the life has begun")
        _require(self.version < 0 and self._saved_step is None, "a position is resumed from after work has begun")
        _require(
            position.life < self.life,
            f"life {self.life} resumes from what life {position.life} saved: expected a later",
        )
        self.completed_steps = self._saved_step = position.completed_steps
        self._steps_of_versions = dict(position.steps_of_versions)

    def step_completed(self) -> None:
        """The optimizer made a step; its weights are not published yet."""
        self._require_between_steps(f"step {self.completed_steps + 1} is completed")
        self.completed_steps += 1
        self._is_published = self._is_recorded = False

    def published(self, version: int) -> None:
        """The parameters have got a version, larger than every one before it in this life."""
        _require(self.life > 0, f"version {version} is published before the life has begun")
        _require(not self._is_published, f"step {self.completed_steps} is version {self.version}, and now {version}")
        _require(version > self.version, f"version {version} is published after version {self.version}")
        self.version, self._is_published = version, True
        self._steps_of_versions[version] = self.completed_steps
        for old in list(self._steps_of_versions)[:-_VERSIONS_REMEMBERED]:
            del self._steps_of_versions[old]

    def trained_on(self, trajectory_ids: Sequence[str]) -> None:
        """The step that was completed last was trained on these trajectories, and the queue knows."""
        _require(self._is_published, f"step {self.completed_steps} reports its trajectories before it is published")
        _require(not self._is_recorded, f"step {self.completed_steps} reports its trajectories twice")
        self._is_recorded = True
        self._since_checkpoint += trajectory_ids

    def position(self, *, prompt_cursor: int, kl_coefficient: float = 0.0) -> Position:
        """Where the run stands now, between two steps.

        Args:
          prompt_cursor: as the queue has it now.
          kl_coefficient: of the next step.
        """
        self._require_between_steps("a position is asked for")
        return Position(
            completed_steps=self.completed_steps,
            trained_version=self.version,
            prompt_cursor=prompt_cursor,
            consumed_trajectory_ids=(*self._in_checkpoint, *self._since_checkpoint),
            kl_coefficient=kl_coefficient,
            steps_of_versions=tuple(self._steps_of_versions.items()),
            life=self.life,
        )

    def save_started(self, position: Position) -> None:
        """The state is being saved together with `position`, which is the ledger's of now."""
        step = position.completed_steps
        _require(not self.is_saving, f"step {step} is saved while another save is in flight")
        _require(self._committed is None, f"step {step} is saved before the save before it is acknowledged")
        _require(not self.is_saved, f"step {step} is saved twice")
        now = self.position(prompt_cursor=position.prompt_cursor, kl_coefficient=position.kl_coefficient)
        _require(position == now, f"a position of step {step} is saved, and the ledger's is another")
        self._saving, self._saved_step = position, step
        self._in_checkpoint, self._since_checkpoint = position.consumed_trajectory_ids, []

    def committed(self) -> tuple[str, ...]:
        """The save in flight is proven; returns the ids of the groups that the queue may forget from now on."""
        saved, self._saving = self._saving, None
        if saved is None:
            raise LedgerError("a save is committed, and none is in flight")
        self._committed = saved
        return saved.consumed_group_ids

    def acknowledged(self, group_ids: Sequence[str]) -> None:
        """The queue has forgotten these groups, which `committed` returned."""
        held = self._committed.consumed_group_ids if self._committed else None
        _require(held == tuple(group_ids), f"{len(group_ids)} groups are forgotten that no committed save holds")
        self._committed, self._in_checkpoint = None, ()

    def _require_between_steps(self, what: str) -> None:
        _require(self._is_published, f"{what} before the parameters of step {self.completed_steps} are published")
        _require(self._is_recorded, f"{what} before step {self.completed_steps} reports what it was trained on")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise LedgerError(problem)

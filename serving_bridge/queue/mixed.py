"""Two queues as one source: rollouts, and a share of each step from users' sessions, with a bound of their own.

Each queue keeps its own states, leases and watermark; a group's id says whose it is. A step takes at most its share of
online groups, and never waits for them. They are handed out last, when they make the step whole: consent is looked at
then, and what was withdrawn until then is buried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learner_jax.contracts import Lease, LeaseReport, Payloads, Trajectory, TrajectorySource

ONLINE = "online"


def online_run(run: str) -> str:
    """The run that the ids of a run's online groups begin with."""
    return f"{run}/{ONLINE}"


class MixedSource:
    """Implements `learner_jax.contracts.TrajectorySource`.

    Args:
      run: whose groups these are.
      per_step: online groups that a step takes at most.
      max_staleness: of online groups, in versions.
      withdrawn: those of the ids whose consent was taken back; asked before a batch is made of them.
      trained: told which online groups a version was trained on.
    """

    def __init__(
        self,
        rollouts: TrajectorySource,
        online: TrajectorySource,
        *,
        run: str,
        per_step: int,
        max_staleness: int,
        withdrawn: Callable[[Sequence[str]], set[str]],
        trained: Callable[[Sequence[str], int], None],
    ) -> None:
        self._rollouts, self._online = rollouts, online
        self._prefix = online_run(run) + "/"
        self._per_step, self._max_staleness = per_step, max_staleness
        self._withdrawn, self._trained = withdrawn, trained
        self._taken = 0
        self._held: list[tuple[str, int, list[Trajectory]]] = []

    def lease_groups(self, count: int, *, trained_version: int, max_staleness: int) -> LeaseReport:
        dropped = 0
        if (wanted := self._wanted(count)) > 0:
            report = self._online.lease_groups(
                wanted, trained_version=trained_version, max_staleness=self._max_staleness
            )
            dropped = report.num_dropped_stale
            self._held += [(group[0].group_id, 0, group) for group in report.groups]
        if (missing := count - len(self._held)) > 0:
            found = self._rollouts.lease_groups(missing, trained_version=trained_version, max_staleness=max_staleness)
            return LeaseReport(groups=found.groups, num_dropped_stale=dropped + found.num_dropped_stale)
        return LeaseReport(groups=[group for _, _, group in self._released()], num_dropped_stale=dropped)

    def lease(self, count: int, *, trained_version: int, max_staleness: int) -> Lease:
        dropped = 0
        if (wanted := self._wanted(count)) > 0:
            found = self._online.lease(wanted, trained_version=trained_version, max_staleness=self._max_staleness)
            dropped = found.num_dropped_stale
            self._held += [(name, size, []) for name, size in zip(found.group_ids, found.num_bytes, strict=True)]
        if (missing := count - len(self._held)) > 0:
            found = self._rollouts.lease(missing, trained_version=trained_version, max_staleness=max_staleness)
            return Lease(found.group_ids, found.num_bytes, num_dropped_stale=dropped + found.num_dropped_stale)
        released = self._released()
        return Lease(
            group_ids=[name for name, _, _ in released],
            num_bytes=[size for _, size, _ in released],
            num_dropped_stale=dropped,
        )

    def read(self, group_ids: Sequence[str]) -> Payloads:
        rollouts, online = self._divided(group_ids)
        found = [source.read(ids) for source, ids in ((self._rollouts, rollouts), (self._online, online)) if ids]
        return Payloads(
            groups={name: group for part in found for name, group in part.groups.items()},
            unreadable={name: reason for part in found for name, reason in part.unreadable.items()},
        )

    def bury(self, group_id: str, reason: str) -> None:
        self._of(group_id).bury(group_id, reason)

    def mark_trained(self, group_ids: Sequence[str], *, completed_steps: int, trained_version: int) -> None:
        rollouts, online = self._divided(group_ids)
        if online:  # first: a version that may have seen them is named, whatever happens next
            self._trained(online, trained_version)
        self._online.mark_trained(online, completed_steps=completed_steps, trained_version=trained_version)
        self._rollouts.mark_trained(rollouts, completed_steps=completed_steps, trained_version=trained_version)
        self._taken = 0

    def acknowledge(self, group_ids: Sequence[str]) -> None:
        rollouts, online = self._divided(group_ids)
        self._online.acknowledge(online)
        self._rollouts.acknowledge(rollouts)

    def take_over(self) -> int:
        self._online.take_over()
        return self._rollouts.take_over()

    def recover(self, consumed_group_ids: Sequence[str], *, completed_steps: int, prompt_cursor: int) -> None:
        rollouts, online = self._divided(consumed_group_ids)
        cursor = self._online.prompt_cursor()
        self._online.recover(online, completed_steps=completed_steps, prompt_cursor=cursor)
        self._rollouts.recover(rollouts, completed_steps=completed_steps, prompt_cursor=prompt_cursor)
        self._taken, self._held = 0, []

    def prompt_cursor(self) -> int:
        return self._rollouts.prompt_cursor()

    def finish(self) -> None:
        self._online.finish()
        self._rollouts.finish()

    def _wanted(self, count: int) -> int:
        """Online groups that the step may take yet."""
        return min(count, self._per_step - self._taken) - len(self._held)

    def _released(self) -> list[tuple[str, int, list[Trajectory]]]:
        """The online groups that make the step whole, without those whose consent was taken back meanwhile."""
        held, self._held = self._held, []
        gone = self._withdrawn([name for name, _, _ in held]) if held else set()
        for group_id in gone:
            self._online.bury(group_id, "the consent of its user was withdrawn")
        kept = [one for one in held if one[0] not in gone]
        self._taken += len(kept)
        return kept

    def _of(self, group_id: str) -> TrajectorySource:
        return self._online if group_id.startswith(self._prefix) else self._rollouts

    def _divided(self, group_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """(ids of rollouts, ids of online groups)."""
        online = [name for name in group_ids if name.startswith(self._prefix)]
        return [name for name in group_ids if not name.startswith(self._prefix)], online

"""Two queues as one source: rollouts, and a share of each step from users' sessions, with a bound of their own.

Each queue keeps its own states, leases and watermark; a group's id says whose it is. A step takes at most its share of
online groups, and never waits for them. What was withdrawn since it was put is buried when it is leased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learner_jax.contracts import Lease, LeaseReport, Payloads, TrajectorySource

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

    def lease_groups(self, count: int, *, trained_version: int, max_staleness: int) -> LeaseReport:
        wanted = min(count, self._per_step - self._taken)
        groups, dropped = [], 0
        if wanted > 0:
            report = self._online.lease_groups(
                wanted, trained_version=trained_version, max_staleness=self._max_staleness
            )
            gone = self._buried([group[0].group_id for group in report.groups])
            groups = [group for group in report.groups if group[0].group_id not in gone]
            dropped = report.num_dropped_stale
        self._taken += len(groups)
        if len(groups) < count:
            report = self._rollouts.lease_groups(
                count - len(groups), trained_version=trained_version, max_staleness=max_staleness
            )
            groups, dropped = groups + report.groups, dropped + report.num_dropped_stale
        return LeaseReport(groups=groups, num_dropped_stale=dropped)

    def lease(self, count: int, *, trained_version: int, max_staleness: int) -> Lease:
        wanted = min(count, self._per_step - self._taken)
        ids: list[str] = []
        sizes: list[int] = []
        dropped = 0
        if wanted > 0:
            found = self._online.lease(wanted, trained_version=trained_version, max_staleness=self._max_staleness)
            gone = self._buried(found.group_ids)
            for name, size in zip(found.group_ids, found.num_bytes, strict=True):
                if name not in gone:
                    ids.append(name)
                    sizes.append(size)
            dropped = found.num_dropped_stale
        self._taken += len(ids)
        if len(ids) < count:
            found = self._rollouts.lease(count - len(ids), trained_version=trained_version, max_staleness=max_staleness)
            ids, sizes = ids + found.group_ids, sizes + found.num_bytes
            dropped += found.num_dropped_stale
        return Lease(group_ids=ids, num_bytes=sizes, num_dropped_stale=dropped)

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
        self._taken = 0

    def prompt_cursor(self) -> int:
        return self._rollouts.prompt_cursor()

    def finish(self) -> None:
        self._online.finish()
        self._rollouts.finish()

    def _buried(self, group_ids: Sequence[str]) -> set[str]:
        gone = self._withdrawn(group_ids) if group_ids else set()
        for group_id in gone:
            self._online.bury(group_id, "the consent of its user was withdrawn")
        return gone

    def _of(self, group_id: str) -> TrajectorySource:
        return self._online if group_id.startswith(self._prefix) else self._rollouts

    def _divided(self, group_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """(ids of rollouts, ids of online groups)."""
        online = [name for name in group_ids if name.startswith(self._prefix)]
        return [name for name in group_ids if not name.startswith(self._prefix)], online

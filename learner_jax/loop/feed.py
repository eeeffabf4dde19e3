"""A step's groups, from the source to the hosts that train on them: bounded waits, one division for all hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from learner_jax.contracts import Trajectory, TrajectorySource, num_sequences
from learner_jax.hosts import Hosts
from learner_jax.loop.admission import admitted
from learner_jax.runtime import Waits, WaitTimeoutError
from learner_jax.settings import LearnerSettings

T = TypeVar("T")
Groups = list[list[Trajectory]]

_POLL_S = 0.01


class StarvedError(WaitTimeoutError):
    """No group came within the bound; the rollout side is down or far too slow."""


@dataclass(frozen=True)
class StepGroups:
    """What one optimizer step trains on.

    Attributes:
      groups: this host's.
      update_rows: this host's sequences in each update of the step; a trajectory has one or, with branches, several.
      group_ids, trajectory_ids: of all hosts.
    """

    groups: Groups
    update_rows: list[int]
    group_ids: list[str]
    trajectory_ids: list[str]
    num_dropped_stale: int


class Feed:
    """Takes groups from a source; of several hosts, the leader alone changes it and each reads its own share.

    Args:
      max_staleness: versions a group may lag when it is trained on.
      online_staleness: the same for groups of users' sessions; None where none are taken.
      should_stop: ends a wait for groups; asked on the leader.
      on_arrival: is given this host's groups in the order in which the batch will hold them.
      waits: where its waits are seen.

    Attributes:
      max_staleness: as given.
    """

    def __init__(
        self,
        source: TrajectorySource,
        hosts: Hosts,
        settings: LearnerSettings,
        *,
        max_staleness: int,
        online_staleness: int | None = None,
        should_stop: Callable[[], bool],
        on_arrival: Callable[[Groups], None],
        waits: Waits | None = None,
    ):
        self._source, self._hosts, self._settings = source, hosts, settings
        self.max_staleness, self._should_stop, self._on_arrival = max_staleness, should_stop, on_arrival
        self._online_staleness = online_staleness
        self._waits = waits or Waits()
        self._num_dropped = 0

    def take(self, step: int, *, trained_version: int) -> StepGroups | None:
        """The groups of step number `step`; None if a stop was asked for while they were waited for.

        Raises:
          StarvedError: no group came for `max_wait_s`.
          HostError: another host does not answer.
        """
        self._num_dropped = 0
        if self._hosts.count == 1:
            return self._take_alone(step, trained_version)
        return self._take_shared(step, trained_version)

    @property
    def takes_older(self) -> bool:
        """Whether groups of older versions may come."""
        return bool(self.max_staleness or self._online_staleness)

    def _admitted(
        self, groups: Sequence[list[Trajectory]], trained_version: int
    ) -> tuple[list[list[Trajectory]], dict[str, str]]:
        return admitted(
            groups,
            trained_version=trained_version,
            max_staleness=self.max_staleness,
            online_staleness=self._online_staleness,
        )

    def _take_alone(self, step: int, trained_version: int) -> StepGroups | None:
        def lease(count: int) -> Groups:
            report = self._source.lease_groups(count, trained_version=trained_version, max_staleness=self.max_staleness)
            groups, refused = self._admitted(report.groups, trained_version)
            for name, reason in refused.items():
                self._source.bury(name, reason)
            self._on_arrival(groups)  # while the others are still being sampled
            self._num_dropped += report.num_dropped_stale
            return groups

        groups: Groups = []
        while (missing := self._settings.groups_per_step - len(groups)) > 0:
            more = self._next_arrivals(missing, lease, step)
            if more is None:
                return None
            groups += more
        rows = [num_sequences(trajectory) for group in groups for trajectory in group]
        size = len(rows) // self._settings.minibatches
        return StepGroups(
            groups=groups,
            update_rows=[
                sum(rows[first : first + size]) for first in range(0, size * self._settings.minibatches, size)
            ],
            group_ids=[group[0].group_id for group in groups],
            trajectory_ids=[t.trajectory_id for group in groups for t in group],
            num_dropped_stale=self._num_dropped,
        )

    def _take_shared(self, step: int, trained_version: int) -> StepGroups | None:
        """Groups have places in the batch; one that can't be read is replaced in its place, on the same host."""
        count, index = self._settings.groups_per_step, self._hosts.index
        ids = [""] * count
        owners: list[int] = []
        own: dict[int, list[Trajectory]] = {}
        trajectory_ids: list[str] = []
        places = list(range(count))
        while places:
            announced = self._announced(len(places), step, trained_version)
            if announced is None:
                return None
            sizes = [size for _, size in announced]
            owners = owners or divided(sizes, self._hosts.count, parts=self._settings.minibatches)
            for place, (name, _) in zip(places, announced, strict=True):
                ids[place] = name
            read = self._source.read([ids[place] for place in places if owners[place] == index])
            taken, refused = self._admitted(list(read.groups.values()), trained_version)
            by_name = {group[0].group_id: group for group in taken}
            own |= {place: by_name[ids[place]] for place in places if ids[place] in by_name}
            found = [t.trajectory_id for group in taken for t in group]
            every = self._hosts.gather([found, read.unreadable | refused], f"what groups of step {step} hold")
            trajectory_ids += [name for found, _ in every for name in found]
            unreadable = {name: reason for _, reasons in every for name, reason in reasons.items()}
            if self._hosts.is_leader:
                for name, reason in unreadable.items():
                    self._source.bury(name, reason)
            places = [place for place in places if ids[place] in unreadable]
        groups = [own[place] for place in sorted(own)]
        self._on_arrival(groups)
        size = count // self._settings.minibatches
        return StepGroups(
            groups=groups,
            update_rows=[
                sum(num_sequences(t) for place in range(first, first + size) if place in own for t in own[place])
                for first in range(0, count, size)
            ],
            group_ids=ids,
            trajectory_ids=trajectory_ids,
            num_dropped_stale=self._num_dropped,
        )

    def _announced(self, count: int, step: int, trained_version: int) -> list[tuple[str, int]] | None:
        """(id, size in bytes) of groups that the leader leases; None if a stop was asked for.

        They are announced as they arrive: the others then never wait longer than the leader may wait for one group.
        """

        def lease(count: int) -> list[tuple[str, int]]:
            report = self._source.lease(count, trained_version=trained_version, max_staleness=self.max_staleness)
            self._num_dropped += report.num_dropped_stale
            return list(zip(report.group_ids, report.num_bytes, strict=True))

        announced: list[tuple[str, int]] = []
        while (missing := count - len(announced)) > 0:
            more = self._next_arrivals(missing, lease, step) if self._hosts.is_leader else None
            more, self._num_dropped = self._hosts.agree([more, self._num_dropped], f"groups of step {step}")
            if more is None:
                return None
            announced += [(name, size) for name, size in more]
        return announced

    def _next_arrivals(self, missing: int, lease: Callable[[int], list[T]], step: int) -> list[T] | None:
        """What `lease` gives next of `missing` groups, at least one; None if a stop was asked for."""
        wanted, limit_s = self._settings.groups_per_step, self._settings.max_wait_s
        with self._waits.waiting(
            f"{missing} of {wanted} groups of step {step}",
            on="rollout",
            limit_s=limit_s,
            setting="learner.max_wait_s",
            hint="check the rollout worker's and the fleet's logs",
            error=StarvedError,
        ) as wait:
            while not (arrived := lease(missing)):
                if self._should_stop():
                    return None
                wait.sleep(_POLL_S)
        return arrived


def divided(sizes: Sequence[int], num_hosts: int, *, parts: int) -> list[int]:
    """The host that each group goes to, such that every host has as many groups and about as many bytes of each part.

    The largest group first, each to the host with the fewest bytes among those with room (longest processing time
    first: Graham, "Bounds on Multiprocessing Timing Anomalies", 1969). Equal numbers keep shapes on each host fixed.

    Args:
      sizes: bytes of each group, in the order of the batch.
      parts: consecutive parts of the batch, one per optimizer update, each divided by itself.
    """
    owners = [0] * len(sizes)
    length = len(sizes) // parts
    most = -(-length // num_hosts)
    for first in range(0, len(sizes), length):
        bytes_of, groups_of = [0] * num_hosts, [0] * num_hosts
        for group in sorted(range(first, first + length), key=lambda group: -sizes[group]):
            host = min((h for h in range(num_hosts) if groups_of[h] < most), key=lambda h: bytes_of[h])
            owners[group] = host
            bytes_of[host] += sizes[group]
            groups_of[host] += 1
    return owners

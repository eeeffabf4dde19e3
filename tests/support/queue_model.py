"""The queue as plain Python: what each operation must answer and leave behind, without rows, files or locks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from serving_bridge.queue.staleness import Pace

LIVE, ENDED = ("ready", "leased", "trained"), ("acknowledged", "dropped")


class Refused(Exception):
    """The model refuses what was asked; `kind` names the error that the queue must raise."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass
class Group:
    """One group. `state` is "forgotten" where a dead letter made room for newer ones."""

    group_id: str
    index: int
    payload: bytes
    oldest_version: int
    priority: int
    created_s: float
    number: int
    state: str = "ready"
    tries: int = 0
    lease: int = 0
    until_s: float = 0.0


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: the groups that its parameters were trained on, and where the run stood."""

    history: frozenset[str] = frozenset()
    consumed: tuple[str, ...] = ()
    completed_steps: int = 0
    prompt_cursor: int = 0


@dataclass
class Learner:
    """One connection of a learner: its turn, and the leases that it knows of."""

    turn: int
    leases: dict[str, int] = field(default_factory=dict)
    in_charge: bool = False


@dataclass
class QueueModel:
    """All of it at one moment; times in seconds."""

    now_s: float
    lease_s: float
    claim_s: float
    max_tries: int
    max_groups: int
    max_age_s: float
    max_dead: int
    turn: int = 0
    completed_steps: int = 0
    trained_version: int = 0
    finished: bool = False
    next_prompt: int = 0
    #: every prompt below has ended for good
    watermark: int = 0
    claims: dict[int, tuple[str, float]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)

    def among(self, *states: str) -> list[Group]:
        return sorted((g for g in self.groups.values() if g.state in states), key=lambda group: group.number)

    # Workers.

    def claim(self, worker: str, limit: int, pace: Pace, served_step: int) -> list[int]:
        last = min(pace.max_staleness + min(served_step, self.completed_steps) + 1, pace.total_steps)
        allowed = (last - self.completed_steps) * pace.groups_per_step
        room = max(0, allowed - len(self.among("ready", "leased")) - len(self.claims))
        expired = sorted(index for index, (_, until_s) in self.claims.items() if until_s < self.now_s)[:limit]
        fresh = list(range(self.next_prompt, self.next_prompt + max(0, min(room, limit - len(expired)))))
        self.next_prompt += len(fresh)
        for index in expired + fresh:
            self.claims[index] = (worker, self.now_s + self.claim_s)
        return expired + fresh

    def renew(self, worker: str) -> list[int]:
        own = sorted(index for index, (holder, _) in self.claims.items() if holder == worker)
        self.claims |= dict.fromkeys(own, (worker, self.now_s + self.claim_s))
        return own

    def hand_on(self, worker: str) -> None:
        self.claims |= {index: (worker, -1.0) for index, (holder, _) in self.claims.items() if holder == worker}

    def release(self, index: int, worker: str) -> None:
        if self.claims.get(index, ("", 0.0))[0] == worker:
            del self.claims[index]

    def put(self, groups: Sequence[Group], worker: str | None) -> int:
        """Groups of one call; nothing of it counts where one of them is refused."""
        new: dict[str, Group] = {}
        for group in sorted(groups, key=lambda group: group.index):
            if group.index >= self.watermark and group.group_id not in self.groups and group.group_id not in new:
                new[group.group_id] = group
        if worker is not None and any(self.claims.get(g.index, ("", 0.0))[0] != worker for g in new.values()):
            raise Refused("ContractError")
        queued = len(self.among("ready", "leased"))
        if new and self.among("ready") and queued + len(new) > self.max_groups:
            raise Refused("QueueFullError")
        for group in new.values():
            group.number, group.created_s = len(self.groups), self.now_s
            self.groups[group.group_id] = group
        for group in groups:
            self.claims.pop(group.index, None)
        return len(new)

    # Learners.

    def lease(
        self, learner: Learner, count: int, *, trained_version: int, max_staleness: int
    ) -> tuple[list[Group], int]:
        """(groups in the order in which they must come, how many were dropped)"""
        self._require_turn(learner)
        expired = [group for group in self.among("leased") if group.until_s < self.now_s]
        if expired:
            for group in self.among("leased"):
                if learner.leases.get(group.group_id) == group.lease:
                    group.until_s = self.now_s + self.lease_s
        for group in expired:
            if group.until_s < self.now_s:
                group.state = "dead" if group.tries >= self.max_tries else "ready"
        for group in self.among("ready"):
            if group.created_s < self.now_s - self.max_age_s:
                group.state = "dead"
        dropped = [g for g in self.among("ready") if trained_version - g.oldest_version > max_staleness]
        for group in dropped:
            group.state = "dropped"
        leased = sorted(self.among("ready"), key=lambda group: (-group.priority, group.number))[:count]
        for group in leased:
            group.state, group.tries, group.lease = "leased", group.tries + 1, group.lease + 1
            group.until_s = self.now_s + self.lease_s
            learner.leases[group.group_id] = group.lease
        return leased, len(dropped)

    def train(self, learner: Learner, group_ids: Sequence[str], completed_steps: int, trained_version: int) -> None:
        self._require_turn(learner)
        if len(set(group_ids)) < len(group_ids):
            raise Refused("QueueError")
        for group in self._leased(learner, group_ids):
            group.state = "trained"
        self.completed_steps, self.trained_version = completed_steps, trained_version
        self._forget(learner, group_ids)

    def give_back(self, learner: Learner, group_id: str, *, for_good: bool) -> None:
        self._require_turn(learner)
        (group,) = self._leased(learner, [group_id])
        group.state = "dead" if for_good or group.tries >= self.max_tries else "ready"
        self._forget(learner, [group_id])

    def acknowledge(self, learner: Learner, group_ids: Sequence[str]) -> None:
        self._require_turn(learner)
        for group_id in group_ids:
            if group_id in self.groups and self.groups[group_id].state == "trained":
                self.groups[group_id].state = "acknowledged"
        waiting = [g.index for g in self.among(*LIVE)] + list(self.claims)
        self.watermark = max(self.watermark, min([self.next_prompt, *waiting]))
        dead = self.among("dead")
        for group in dead[: max(0, len(dead) - self.max_dead)]:
            if group.index < self.watermark:
                group.state = "forgotten"

    def take_over(self, learner: Learner) -> int:
        self.turn += 1
        learner.turn, learner.in_charge = self.turn, True
        learner.leases.clear()
        return self.turn

    def recover(self, learner: Learner, saved: Saved) -> None:
        if not learner.in_charge:
            self.take_over(learner)
        self._require_turn(learner)
        for group_id in saved.consumed:
            self.groups[group_id].state = "acknowledged"
        for group in self.among("leased", "trained"):
            group.state, group.tries = "ready", 0
        self.next_prompt = max(self.next_prompt, saved.prompt_cursor)
        self.completed_steps, self.finished = saved.completed_steps, False
        learner.leases.clear()

    def finish(self, learner: Learner) -> None:
        self._require_turn(learner)
        self.finished = True

    # People.

    def requeue(self, group_ids: Iterable[str] | None) -> list[str]:
        chosen = [g for g in self.among("dead") if group_ids is None or g.group_id in set(group_ids)]
        for group in chosen:
            group.state, group.tries, group.created_s = "ready", 0, self.now_s
        return [group.group_id for group in chosen]

    def _require_turn(self, learner: Learner) -> None:
        if learner.turn != self.turn:
            raise Refused("LeaseLostError")

    def _leased(self, learner: Learner, group_ids: Sequence[str]) -> list[Group]:
        found = [self.groups.get(group_id) for group_id in group_ids]
        for group in found:
            if group is None or group.state != "leased" or learner.leases.get(group.group_id) != group.lease:
                raise Refused("LeaseLostError")
        return [group for group in found if group is not None]

    @staticmethod
    def _forget(learner: Learner, group_ids: Sequence[str]) -> None:
        for group_id in group_ids:
            learner.leases.pop(group_id, None)

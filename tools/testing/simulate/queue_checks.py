"""What must hold of the queue's rows after every transaction; written without the code that ensures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from learner_jax.contracts import decode_group
from serving_bridge.database import Database
from tools.testing.simulate.file_checks import FileChecks
from tools.testing.simulate.loop import Process
from tools.testing.simulate.setting import Setting
from tools.testing.simulate.violations import Violations

#: from each state of a group, those that one transaction may lead to; None: its row goes
_NEXT: Mapping[str | None, frozenset[str | None]] = {
    None: frozenset({"ready", "acknowledged"}),
    "ready": frozenset({"leased", "dropped", "dead", "acknowledged"}),
    "leased": frozenset({"ready", "trained", "dead", "acknowledged"}),
    "trained": frozenset({"ready", "acknowledged"}),
    "acknowledged": frozenset({None}),
    "dropped": frozenset({None, "acknowledged"}),
    "dead": frozenset({None, "acknowledged", "ready"}),
}
_ENDED = ("acknowledged", "dropped")
_KEYS = ("next_prompt", "completed_steps", "consumer_epoch", "watermark", "finished", "trained_version")


class _Group(NamedTuple):
    """A row; `has_payload` of one that keeps its payload in another row."""

    state: str
    prompt: int
    oldest_version: int
    blob: str | None
    expires_s: float
    has_payload: bool


class _Claim(NamedTuple):
    worker: str
    expires_s: float


@dataclass(frozen=True)
class _Seen:
    """All rows after a transaction, and how many of them are payloads."""

    groups: Mapping[str, _Group]
    claims: Mapping[int, _Claim]
    numbers: Mapping[str, int]
    num_payloads: int


class QueueChecks:
    """Compares the rows after each transaction with those before it.

    Args:
      durable: groups that the newest checkpoint on the disk holds.
    """

    def __init__(
        self,
        violations: Violations,
        setting: Setting,
        database: Database,
        files: FileChecks,
        durable: Callable[[], set[str]],
    ) -> None:
        self._violations, self._setting, self._database = violations, setting, database
        self._files, self._durable = files, durable
        self._before = self._look()
        #: the turn of each learner, by process; those that took over later have a larger one
        self._turns: dict[Process, int] = {}
        #: who leased each group last
        self._leased_by: dict[str, Process] = {}

    def committed(self, process: Process, *, is_synced: bool) -> None:
        """After a transaction of a process."""
        before, now = self._before, self._look()
        self._before = now
        self._check_turn(process, before, now)
        if now.groups != before.groups:
            self._check_groups(process, before, now)
            self._check_step(before, now)
            self._check_room(before, now)
            self._check_payloads(now)
        if now.claims != before.claims or now.numbers != before.numbers:
            self._check_claims(process, before, now)
        self._check_gate(before, now)
        dropped = {group.blob for group in now.groups.values() if group.state == "dropped" and group.blob is not None}
        self._files.needed_by_rows(_files(now), is_synced=is_synced, dropped=dropped)

    def lost_power(self) -> None:
        """The database forgot what was not synced; nobody who did that is alive."""
        self._before = self._look()
        self._leased_by.clear()
        durable = self._durable()
        for name, group in self._before.groups.items():
            lost = group.state == "acknowledged" and name not in durable
            self._violations.require(not lost, "acknowledged before the checkpoint", f"{name} is lost")
        self._files.needed_by_rows(_files(self._before), is_synced=True)
        self._check_payloads(self._before)

    def finished(self, consumed: set[str]) -> None:
        """The run has ended: every group that was accepted is accounted for."""
        for name, group in self._before.groups.items():
            self._violations.require(group.state != "trained", "unaccounted group", f"{name} is still {group.state}")
            if group.state == "acknowledged":
                self._violations.require(name in consumed, "unaccounted group", f"{name} is acknowledged, not trained")

    def _look(self) -> _Seen:
        groups, claims, numbers, ((num_payloads,),) = self._database.read(
            lambda session: (
                session.execute(
                    "SELECT group_id, state, prompt_index, oldest_version, blob, coalesce(lease_expires_s, 0), "
                    "EXISTS (SELECT 1 FROM payloads WHERE payloads.sequence = groups.sequence) FROM groups"
                ),
                session.execute("SELECT prompt_index, worker, expires_s FROM claims"),
                session.execute("SELECT key, value FROM progress"),
                session.execute("SELECT count(*) FROM payloads"),
            )
        )
        return _Seen(
            {name: _Group(*rest) for name, *rest in groups},
            {prompt: _Claim(worker, expires) for prompt, worker, expires in claims},
            dict(numbers),
            num_payloads,
        )

    def _check_turn(self, process: Process, before: _Seen, now: _Seen) -> None:
        """A learner that was replaced changes nothing any more."""
        turn = now.numbers["consumer_epoch"]
        require = self._violations.require
        require(turn >= before.numbers["consumer_epoch"], "turn went back", f"{turn} after a later one")
        if turn > before.numbers["consumer_epoch"]:
            self._turns[process] = turn
        elif process.name == "learner" and now != before:
            own = self._turns.get(process)
            require(own == turn, "change by a replaced learner", f"turn {own} changed rows in turn {turn}")

    def _check_groups(self, process: Process, before: _Seen, now: _Seen) -> None:
        require = self._violations.require
        durable: set[str] | None = None
        for name in sorted(now.groups.keys() | before.groups.keys()):
            old, new = before.groups.get(name), now.groups.get(name)
            state, target = old and old.state, new and new.state
            if state == target:
                continue
            if target is None and state not in ("dropped", "dead"):
                target = "acknowledged"  # a row may go in the very transaction that ends its group
            allowed = state == target or target in _NEXT[state]
            require(allowed, "change of state", f"{process.name} took group {name} from {state} to {target}")
            if state is None and target == "ready":
                self._check_put(process, name, before, now)
            if target == "leased" and new is not None:
                self._leased_by[name] = process
                lag, most = now.numbers["trained_version"] - new.oldest_version, self._setting.pace.max_staleness
                require(lag <= most, "stale group leased", f"{name} lags {lag} versions, allowed are {most}")
            if target == "trained":
                holder = self._leased_by.get(name)
                require(holder is process, "trained without a lease", f"{name} is trained on by another than leased it")
            if target == "acknowledged":
                durable = self._durable() if durable is None else durable
                require(
                    name in durable, "acknowledged before the checkpoint", f"{name} is in no checkpoint on the disk"
                )

    def _check_step(self, before: _Seen, now: _Seen) -> None:
        """A step is recorded together with the groups that it was made of."""
        trained = sum(
            group.state == "trained" and (old := before.groups.get(name)) is not None and old.state != "trained"
            for name, group in now.groups.items()
        )
        steps = now.numbers["completed_steps"] - before.numbers["completed_steps"]
        right = not trained or (steps == 1 and trained == self._setting.pace.groups_per_step)
        self._violations.require(right, "step without its groups", f"{trained} groups are trained on in {steps} steps")

    def _check_put(self, process: Process, name: str, before: _Seen, now: _Seen) -> None:
        group = now.groups[name]
        claim = before.claims.get(group.prompt)
        holds = claim is not None and claim.worker == process.name
        require = self._violations.require
        require(holds, "put without a claim", f"{process.name} put {name}, which {claim and claim.worker} has claimed")
        require(group.prompt not in now.claims, "claim kept", f"prompt {group.prompt} is claimed, its group is put")
        require(
            group.prompt >= before.numbers["watermark"], "put twice", f"{name} is of a prompt that has ended for good"
        )
        if group.blob is not None:
            self._files.put(name, group.blob)
        oldest = _oldest_version(self._payload(name))
        what = f"{name} is said to be of version {group.oldest_version}, its oldest token is of {oldest}"
        require(oldest == group.oldest_version, "row unlike its payload", what)

    def _payload(self, name: str) -> bytes:
        ((file, offset, size, payload),) = self._database.read(
            lambda session: session.execute(
                "SELECT blob, blob_offset, num_bytes, payload FROM groups LEFT JOIN payloads USING (sequence) "
                "WHERE group_id = ?",
                (name,),
            )
        )
        return payload if file is None else self._files.read(file)[offset : offset + size]

    def _check_room(self, before: _Seen, now: _Seen) -> None:
        new = now.groups.keys() - before.groups.keys()
        waiting = sum(group.state in ("ready", "leased") for group in now.groups.values())
        was_empty = not any(group.state == "ready" for group in before.groups.values())
        put = any(now.groups[name].state == "ready" for name in new)
        most = self._setting.bounds.max_groups
        self._violations.require(
            not put or was_empty or waiting <= most, "queue over capacity", f"{waiting} groups wait, allowed are {most}"
        )

    def _check_payloads(self, now: _Seen) -> None:
        """Who may still be trained on has a payload, and nobody else has one in a row."""
        require = self._violations.require
        of_groups = sum(group.has_payload for group in now.groups.values())
        require(now.num_payloads == of_groups, "payload kept", f"{now.num_payloads - of_groups} rows are of no group")
        for name, group in now.groups.items():
            needed = group.state not in _ENDED
            if group.blob is None and group.has_payload != needed and group.oldest_version >= 0:
                require(not needed, "payload missing", f"{name} is {group.state} without a payload")
                require(needed, "payload kept", f"{name} is {group.state}, and its payload is still there")

    def _check_claims(self, process: Process, before: _Seen, now: _Seen) -> None:
        require = self._violations.require
        new_prompts = range(before.numbers["next_prompt"], now.numbers["next_prompt"])
        for prompt in sorted(before.claims.keys() | now.claims.keys()):
            old, new = before.claims.get(prompt), now.claims.get(prompt)
            if old == new:
                continue
            if new is not None and old is None:
                require(prompt in new_prompts, "prompt claimed twice", f"{prompt} was claimed before, and has ended")
            elif new is not None and old is not None and new.worker != old.worker:
                ran_out = old.expires_s < process.wall_clock()
                require(
                    ran_out, "claim taken away", f"{new.worker} has prompt {prompt}, {old.worker}'s has not run out"
                )
            elif new is None and old is not None:
                require(old.worker == process.name, "claim lost", f"{process.name} ended {old.worker}'s of {prompt}")
        missing = [prompt for prompt in new_prompts if prompt not in now.claims]
        require(not missing, "prompt skipped", f"prompts {missing} were passed over, and nobody has claimed them")

    def _check_gate(self, before: _Seen, now: _Seen) -> None:
        """Whenever new prompts were dispatched there was room for them."""
        pace, numbers = self._setting.pace, now.numbers
        require = self._violations.require
        going_back = [key for key in ("next_prompt", "watermark") if numbers[key] < before.numbers[key]]
        require(not going_back, "number went back", f"{going_back} went back, now {dict(numbers)}")
        live = [group.prompt for group in now.groups.values() if group.state in ("ready", "leased", "trained")]
        least = min([numbers["next_prompt"], *live, *now.claims])
        require(numbers["watermark"] <= least, "watermark too high", f"{numbers['watermark']}, expected up to {least}")
        if numbers["next_prompt"] > before.numbers["next_prompt"]:
            completed = numbers["completed_steps"]
            waiting = sum(group.state in ("ready", "leased") for group in now.groups.values())
            in_use = completed * pace.groups_per_step + waiting + len(now.claims)
            steps = min(pace.max_staleness + completed + 1, pace.total_steps)
            allowed = steps * pace.groups_per_step
            require(in_use <= allowed, "gate", f"{in_use} groups are trained on, waiting or running, of {allowed}")


def _oldest_version(payload: bytes) -> int:
    """Of all tokens that were sampled."""
    versions = [trajectory.policy_version for trajectory in decode_group(payload)]
    return min(int(each[each >= 0].min()) for each in versions)


def _files(seen: _Seen) -> set[str]:
    return {group.blob for group in seen.groups.values() if group.blob is not None and group.state not in _ENDED}

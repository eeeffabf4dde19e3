"""What the queue's operations do to its rows, inside a transaction; every change of state goes by `states`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learner_jax.contracts import ContractError, quoted
from serving_bridge.database import Row, Session, marks, pieces
from serving_bridge.queue.blobs import Blob
from serving_bridge.queue.staleness import is_stale
from serving_bridge.queue.states import ENDED, LIVE, STATES, TRANSITIONS, Event, State

#: States in which a group's payload is kept.
_HELD = tuple(state for state in STATES if state not in ENDED)
#: A size that sums can take: a row may say anything.
_SOUND_BYTES = f"CASE WHEN num_bytes BETWEEN 0 AND {2**40} THEN num_bytes ELSE 0 END"
#: What `held` takes after the group's id.
ROW = "prompt_index, oldest_version, num_bytes, blob, blob_offset, blob_hash"


@dataclass(frozen=True)
class Record:
    """A group on its way into the queue; its payload is in a file where `blob` says so, otherwise in a row."""

    group_id: str
    prompt_index: int
    oldest_version: int
    payload: bytes
    blob: Blob | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.payload)


@dataclass(frozen=True)
class Held:
    """What a row says of its group, and where the payload is; nothing of it is believed before the payload agrees."""

    group_id: str
    prompt_index: int
    oldest_version: int
    num_bytes: int
    blob: Blob | None
    payload: bytes | None = None


@dataclass(frozen=True)
class Queued:
    """Groups that are ready; groups and payload bytes that are ready or leased."""

    num_ready: int
    num_groups: int
    num_bytes: int


def _among(states: Sequence[State]) -> str:
    return ",".join(f"'{state}'" for state in states)


# Numbers of the run.


def get(session: Session, key: str, lock: str = "") -> int:
    rows = session.execute(f"SELECT value FROM progress WHERE key = ?{lock}", (key,))
    return rows[0][0] if rows else 0


def put(session: Session, **values: int) -> None:
    session.executemany("UPDATE progress SET value = ? WHERE key = ?", [(value, key) for key, value in values.items()])


def numbers(session: Session) -> dict[str, int]:
    """All of them, by key."""
    found: dict[str, int] = dict(session.execute("SELECT key, value FROM progress"))
    return found


# Groups.


def change(
    session: Session,
    event: Event,
    where: str,
    parameters: Sequence[object] = (),
    *,
    also: str = "",
    values: Sequence[object] = (),
    by_key: bool = False,
) -> list[Row]:
    """Sends groups that meet a condition through an event; those in states that it can't meet are left alone.

    Args:
      where: condition, with `parameters`.
      by_key: it names the groups: they are to be looked up, and not looked for among all in the same state.
      also: further assignments, with `values`.

    Returns:
      (sequence, group id, blob, lease token) of each.
    """
    transition = TRANSITIONS[event]
    state = session.dialect.unindexed("state") if by_key else "state"
    return session.execute(
        f"UPDATE groups SET state = '{transition.target}'{', ' + also if also else ''} "
        f"WHERE {state} IN ({_among(transition.sources)}) AND ({where}) "
        "RETURNING sequence, group_id, blob, lease_token",
        (*values, *parameters),
    )


def change_named(
    session: Session, event: Event, group_ids: Sequence[str], *, also: str = "", values: Sequence[object] = ()
) -> list[Row]:
    """`change` of groups by id."""
    return [
        row
        for piece in pieces(group_ids)
        for row in change(session, event, f"group_id IN ({marks(piece)})", piece, also=also, values=values, by_key=True)
    ]


def insert(
    session: Session, records: Sequence[Record], *, priority: int, now: float, worker: str | None = None
) -> list[Record]:
    """Adds groups as ready and ends their claims; returns those that were new.

    Args:
      worker: whose claims the prompts of new groups must be; None lets it be.

    Raises:
      ContractError: one is not.

    Known are groups with a row, and all of prompts below the watermark, whose rows are gone. Of several records of one
    group the first counts: a worker that lost a claim and got it again may bring a group twice.
    """
    records = list({record.group_id: record for record in reversed(records)}.values())
    watermark = get(session, "watermark", session.dialect.for_share)
    fresh = sorted((r for r in records if r.prompt_index >= watermark), key=lambda record: record.prompt_index)
    added = session.executemany(
        "INSERT INTO groups (group_id, prompt_index, state, priority, oldest_version, num_bytes, created_s, "
        "blob, blob_offset, blob_hash) "
        "VALUES (?, ?, 'ready', ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (group_id) DO NOTHING RETURNING sequence, group_id",
        [(r.group_id, r.prompt_index, priority, r.oldest_version, r.num_bytes, now, *_columns(r.blob)) for r in fresh],
    )
    sequences = {group_id: sequence for sequence, group_id in added}
    new = [record for record in fresh if record.group_id in sequences]
    session.executemany(
        "INSERT INTO payloads VALUES (?, ?)",
        [(sequences[record.group_id], record.payload) for record in new if record.blob is None],
    )
    end_claims(session, records, new, worker)
    return new


def end_claims(session: Session, records: Sequence[Record], new: Sequence[Record], worker: str | None) -> None:
    """Ends the claims of the records' prompts.

    Raises:
      ContractError: one of the new ones is not claimed by the worker; None lets it be.
    """
    holders: dict[int, str] = dict(
        row
        for piece in pieces([record.prompt_index for record in records])
        for row in session.execute(
            f"DELETE FROM claims WHERE prompt_index IN ({marks(piece)}) RETURNING prompt_index, worker", piece
        )
    )
    for record in new:
        if worker is not None and (holder := holders.get(record.prompt_index)) != worker:
            raise ContractError(
                f"group {record.group_id} is of a prompt that {quoted(holder or 'nobody', 80)} has claimed, expected "
                f"{worker}: it comes from a claim that was handed on, or from none"
            )


def known(session: Session, group_ids: Sequence[str]) -> set[str]:
    """Those of the groups that have a row."""
    return {
        group_id
        for piece in pieces(group_ids)
        for (group_id,) in session.execute(f"SELECT group_id FROM groups WHERE group_id IN ({marks(piece)})", piece)
    }


def insert_dropped(session: Session, records: Sequence[Record], *, now: float, reason: str) -> list[Record]:
    """Adds groups that were given up before they were ready, so that their ids are known; returns the new ones."""
    watermark = get(session, "watermark", session.dialect.for_share)
    fresh = [record for record in records if record.prompt_index >= watermark]
    added = session.executemany(
        "INSERT INTO groups (group_id, prompt_index, state, oldest_version, created_s, reason) "
        "VALUES (?, ?, 'dropped', ?, ?, ?) ON CONFLICT (group_id) DO NOTHING RETURNING group_id",
        [(record.group_id, record.prompt_index, record.oldest_version, now, reason) for record in fresh],
    )
    new = {group_id for (group_id,) in added}
    return [record for record in fresh if record.group_id in new]


def queued(session: Session) -> Queued:
    ((num_ready, num_groups, num_bytes),) = session.execute(
        "SELECT coalesce(sum(CASE state WHEN 'ready' THEN 1 ELSE 0 END), 0), count(*), "
        f"coalesce(sum({_SOUND_BYTES}), 0) FROM groups WHERE state IN ('ready', 'leased')"
    )
    return Queued(int(num_ready), num_groups, int(num_bytes))


def bury_old(session: Session, now: float, max_age_s: float) -> None:
    reason = f"older than {max_age_s:g} s (store.max_age_s)"
    change(session, "age", "created_s < ?", (now - max_age_s,), also="reason = ?", values=(reason,))


def drop_stale(session: Session, trained_version: int, max_staleness: int) -> list[Row]:
    """Drops ready groups that are too far behind; returns them as `change` does."""
    dropped: list[Row] = []
    for (oldest,) in session.execute("SELECT DISTINCT oldest_version FROM groups WHERE state = 'ready'"):
        if is_stale(trained_version=trained_version, oldest_version=oldest, max_staleness=max_staleness):
            reason = f"stale at version {trained_version}"
            dropped += change(session, "drop", "oldest_version = ?", (oldest,), also="reason = ?", values=(reason,))
    return free(session, dropped)


def erase(session: Session, group_ids: Sequence[str], indices: Sequence[int], *, now: float, reason: str) -> list[str]:
    """Takes the payloads of groups away, whatever state they are in; returns files that must go, too.

    Groups that nobody works on have ended then. A leased one keeps its row: its learner finds nothing to read, or has
    read it already. One without a row is known as ended, so that whoever is about to put it does so in vain.

    Args:
      indices: the groups' prompts.
    """
    free(session, change_named(session, "erase", group_ids, also="reason = ?", values=(reason,)))
    files: set[str] = set()
    for piece in pieces(group_ids):
        found = session.execute(f"SELECT sequence, blob FROM groups WHERE group_id IN ({marks(piece)})", piece)
        files |= {blob for _, blob in found if blob is not None}
        sequences = [sequence for sequence, _ in found]
        if sequences:
            session.execute(f"DELETE FROM payloads WHERE sequence IN ({marks(sequences)})", sequences)
    missing = set(group_ids) - known(session, group_ids)
    absent = [Record(n, index, 0, b"") for n, index in zip(group_ids, indices, strict=True) if n in missing]
    insert_dropped(session, absent, now=now, reason=reason)
    return sorted(files - _files_of_others(session, sorted(files), set(group_ids)))


def _files_of_others(session: Session, files: Sequence[str], group_ids: set[str]) -> set[str]:
    """Those of the files in which other groups than these have a payload that is needed yet."""
    return {
        file
        for piece in pieces(files)
        for file, group_id in session.execute(
            f"SELECT blob, group_id FROM groups WHERE blob IN ({marks(piece)}) AND state IN ({_among(_HELD)})", piece
        )
        if group_id not in group_ids
    }


def recover(session: Session, consumed: Sequence[str], *, completed_steps: int, prompt_cursor: int) -> list[Row]:
    """Makes the groups agree with a checkpoint that holds the consumed ones; returns those as `change` does."""
    ended = free(session, change_named(session, "settle", consumed))
    # A stand-in for those without a row, which this queue forgot or never saw. Their prompts are below the cursor, and
    # it stays until all of those have ended.
    session.executemany(
        "INSERT INTO groups (group_id, prompt_index, state, oldest_version, created_s) "
        "VALUES (?, ?, 'acknowledged', 0, -1) ON CONFLICT (group_id) DO NOTHING",
        [(group_id, prompt_cursor) for group_id in consumed],
    )
    change(session, "restore", "1 = 1", also="tries = 0")
    next_prompt = max(prompt_cursor, get(session, "next_prompt", session.dialect.for_update))
    put(session, completed_steps=completed_steps, next_prompt=next_prompt, finished=0)
    return ended


def requeue(session: Session, group_ids: Sequence[str] | None, now: float) -> list[str]:
    """Makes dead letters, or all of them, as new; returns their ids."""
    also, values = "tries = 0, created_s = ?", (now,)
    if group_ids is None:
        changed = change(session, "requeue", "1 = 1", also=also, values=values)
    else:
        changed = change_named(session, "requeue", group_ids, also=also, values=values)
    return [group_id for _, group_id, _, _ in changed]


def free(session: Session, ended: list[Row]) -> list[Row]:
    """Deletes the payloads of groups that ended; returns them."""
    for piece in pieces([row[0] for row in ended if row[2] is None]):
        session.execute(f"DELETE FROM payloads WHERE sequence IN ({marks(piece)})", piece)
    return ended


def needless_files(session: Session, ended: Sequence[Row]) -> list[str]:
    """Files of groups that ended, or were deleted, which hold no other group's payload that is needed yet."""
    files = sorted({row[2] for row in ended if row[2] is not None})
    needed = {
        file
        for piece in pieces(files)
        for (file,) in session.execute(
            f"SELECT blob FROM groups WHERE blob IN ({marks(piece)}) AND state IN ({_among(_HELD)})", piece
        )
    }
    return [file for file in files if file not in needed]


def wanted_files(session: Session) -> dict[str, int]:
    """How many groups that have not ended have their payload in each file."""
    return dict(
        session.execute(
            f"SELECT blob, count(*) FROM groups WHERE state IN ({_among(_HELD)}) AND blob IS NOT NULL GROUP BY blob"
        )
    )


def held(group_id: str, place: Sequence[Any], payload: bytes | None) -> Held:
    prompt_index, oldest_version, num_bytes, file, offset, hash_ = place
    blob = None if file is None else Blob(file, offset, num_bytes, hash_)
    return Held(group_id, prompt_index, oldest_version, num_bytes, blob, payload)


def _columns(blob: Blob | None) -> tuple[str | None, int | None, str | None]:
    return (None, None, None) if blob is None else (blob.file, blob.offset, blob.hash)


def purge(session: Session, *, max_dead: int) -> list[Row]:
    """Raises the watermark and removes the rows that it makes needless; returns the dead letters among them as `change`
    does.

    All prompts below the watermark have ended: they were dispatched, nobody holds a claim, and no group of theirs is on
    its way or waits for rewards. It never goes down, so that a group of theirs that comes late (a worker that was
    thought dead) is known for good, also without a row. Dead letters keep their rows, the newest `max_dead` of them.
    """
    known = get(session, "watermark", session.dialect.for_update)
    ((next_prompt, live, claimed, waiting, num_dead),) = session.execute(
        "SELECT (SELECT value FROM progress WHERE key = 'next_prompt'), "
        f"(SELECT min(prompt_index) FROM groups WHERE state IN ({_among(LIVE)})), "
        "(SELECT min(prompt_index) FROM claims), (SELECT min(prompt_index) FROM waiting_groups), "
        "(SELECT count(*) FROM groups WHERE state = 'dead')"
    )
    watermark = max(known, min(index for index in (next_prompt, live, claimed, waiting) if index is not None))
    if watermark != known:
        put(session, watermark=watermark)
        gone = session.execute(
            f"DELETE FROM groups WHERE state IN ({_among(ENDED)}) AND prompt_index < ? RETURNING state, created_s",
            (watermark,),
        )
        for state, count in Counter(state for state, created_s in gone if created_s >= 0).items():
            _count_removed(session, state, count)
    if num_dead <= max_dead:
        return []
    # A dead letter is dropped only once the watermark stands for it.
    excess = session.execute(
        "DELETE FROM groups WHERE state = 'dead' AND prompt_index < ? AND sequence NOT IN "
        "(SELECT sequence FROM groups WHERE state = 'dead' ORDER BY sequence DESC LIMIT ?) "
        "RETURNING sequence, group_id, blob, lease_token",
        (watermark, max_dead),
    )
    _count_removed(session, "dead", len(excess))
    return free(session, excess)


def _count_removed(session: Session, state: State, count: int) -> None:
    session.execute("UPDATE progress SET value = value + ? WHERE key = ?", (count, f"removed_{state}"))


def counts(session: Session) -> Mapping[State, int]:
    """Groups by state, also those whose rows are gone; stand-ins were counted in their time."""
    found: dict[State, int] = dict.fromkeys(STATES, 0)
    found |= {
        key.removeprefix("removed_"): value
        for key, value in session.execute("SELECT key, value FROM progress WHERE key LIKE 'removed%'")
    }
    for state, count in session.execute("SELECT state, count(*) FROM groups GROUP BY state"):
        found[state] += count
    ((stand_ins,),) = session.execute("SELECT count(*) FROM groups WHERE state = 'acknowledged' AND created_s < 0")
    found["acknowledged"] -= stand_ins
    return found

"""Rows of a queue that somebody changed past `put`: the learner's side buries them and leases all others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from serving_bridge.database import Session, open_database
from serving_bridge.queue import QueueBounds, TrajectoryQueue
from tools.testing.fuzz.mutations import Rng
from tools.testing.fuzz.trajectories import LIMITS, valid_group

_GROUPS = 12
_NUMBERS = (-1, 0, 1, 7, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
_TEXTS = ("", ".", "..", "/dev/zero", "../x", "x" * 5000, "fuzz/999999", "other/1", "\x1b[2J", "0" * 32, "fuzz/01")
#: bytes that are no text, as SQL; only SQLite lets them in
_NO_TEXT = "CAST(x'ff00fe' AS TEXT)"

#: column -> what it may be made to say
COLUMNS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "group_id": (*_TEXTS, None),
        "blob": (*_TEXTS, None),
        "blob_hash": _TEXTS,
        "leased_by": (*_TEXTS, None),
        "reason": (*_TEXTS, None),
        **dict.fromkeys(
            ("prompt_index", "priority", "oldest_version", "num_bytes", "tries", "lease_token", "blob_offset"), _NUMBERS
        ),
        "lease_expires_s": (-1e308, 0.0, 1e308),
        "created_s": (-1e308, 0.0, 1e308),
    }
)


def damage_rows(rng: Rng) -> tuple[int, list[str]]:
    """One queue, some of whose rows are changed, in a learner's life; (groups taken, reasons of the dead letters).

    Raises:
      AssertionError: a group that nobody touched was not leased, or what was leased is not what was put.
    """
    database = open_database(":memory:")
    queue = TrajectoryQueue(database=database, limits=LIMITS, bounds=QueueBounds(max_group_bytes=10_000))
    groups = {number: valid_group(rng, number) for number in range(_GROUPS)}
    queue.producer.put(list(groups.items()))
    touched = {int(number) for number in rng.integers(0, _GROUPS, _GROUPS // 2)}

    def damage(session: Session) -> None:
        for number in touched:
            column = list(COLUMNS)[rng.integers(len(COLUMNS))]
            value = COLUMNS[column][rng.integers(len(COLUMNS[column]))]
            given = "?" if value is not None else _NO_TEXT
            # A name that another row has already is refused by the database itself.
            session.execute(
                f"UPDATE OR IGNORE groups SET {column} = {given} WHERE group_id = ?",
                (*([] if value is None else [value]), f"fuzz/{number}"),
            )

    database.write(damage)
    queue.consumer.take_over()
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    taken: dict[str, bytes] = {}
    while leased := queue.consumer.lease_groups(5, trained_version=9, max_staleness=9).groups:
        names = [group[0].group_id for group in leased]
        taken |= {group[0].group_id: group[0].tokens.tobytes() for group in leased}
        queue.consumer.mark_trained(names, completed_steps=len(taken), trained_version=9)
        queue.consumer.acknowledge(names)
    sound = {f"fuzz/{number}" for number in groups if number not in touched}
    assert sound <= taken.keys(), sound - taken.keys()
    assert all(tokens == groups[int(name.partition("/")[2])][0].tokens.tobytes() for name, tokens in taken.items())
    dead = [reason for _, reason in queue.admin.dead_letters()]
    assert len(taken) + len(dead) + queue.admin.progress().num_dropped == _GROUPS, (taken, dead)
    assert all(reason and reason.isprintable() for reason in dead), dead
    queue.admin.overview()
    queue.close()
    return len(taken), dead

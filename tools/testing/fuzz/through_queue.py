"""Damaged groups in a real queue: what is leased is valid, everything else ends as a dead letter with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from learner_jax.contracts import ContractError, decode_group
from serving_bridge.database import Session, open_database
from serving_bridge.queue import QueueBounds, TrajectoryQueue
from tools.testing.fuzz.mutations import Rng
from tools.testing.fuzz.trajectories import BREAKING, LIMITS, broken_object, is_valid, valid_group


def lease_all(payloads: Mapping[int, bytes]) -> tuple[int, list[str]]:
    """Puts bytes under the rows of groups by number and leases everything; (groups taken, reasons of the dead letters).

    Raises:
      AssertionError: a row vanished, has no reason, or what was leased is not valid.
    """
    database = open_database(":memory:")
    queue = TrajectoryQueue(database=database, limits=LIMITS, bounds=QueueBounds(max_dead=len(payloads)))

    def insert(session: Session) -> None:
        session.executemany(
            "INSERT INTO groups (sequence, group_id, prompt_index, state, oldest_version, num_bytes, created_s) "
            "VALUES (?, ?, ?, 'ready', ?, ?, 0)",
            [
                (number, f"fuzz/{number}", number, _oldest(payload), len(payload))
                for number, payload in payloads.items()
            ],
        )
        session.executemany("INSERT INTO payloads VALUES (?, ?)", list(payloads.items()))

    database.write(insert)
    taken = queue.consumer.lease_groups(len(payloads), trained_version=1, max_staleness=9).groups
    dead = queue.admin.dead_letters()
    assert len(taken) + len(dead) == len(payloads), (len(taken), len(dead))
    assert all(reason for _, reason in dead), dead
    assert all(is_valid(group) for group in taken)
    queue.close()
    return len(taken), [reason for _, reason in dead]


def _oldest(payload: bytes) -> int:
    try:
        return min(trajectory.oldest_version for trajectory in decode_group(payload))
    except ContractError:
        return 1


def put_broken(rng: Rng, numbers: Sequence[int]) -> list[str]:
    """What `put` says to groups that a producer built wrongly: all are refused, and nothing of them is kept.

    Raises:
      AssertionError: one was accepted.
    """
    queue = TrajectoryQueue(":memory:", limits=LIMITS)
    reasons = []
    for number in numbers:
        name, group = broken_object(rng, number)
        try:
            queue.producer.put([(number, group), (number + 1, valid_group(rng, number + 1))])
        except ContractError as error:
            reasons.append(str(error))
        else:
            raise AssertionError(f"put accepted a group with {name}: {group}")
    assert queue.admin.progress().num_ready == 0
    queue.close()
    return reasons


def kinds() -> list[str]:
    """Every kind of damage that `trajectories.payload` knows."""
    return [*BREAKING, "any field", "nested deeply", "bytes"]

"""Rows that somebody wrote into the queue's database past `put`: buried one by one, while the learner goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from learner_jax.contracts.weights import ContractError, RecordLimits
from serving_bridge.database.database import Session
from serving_bridge.queue.bounds import QueueBounds
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import PACE, Place, clock, execute, place
from tests.support.trajectories import make_group

__all__ = ["clock", "place"]  # fixtures

LIMITS = RecordLimits(vocab_size=32, max_length=300, group_size=2, run="run")
MAX_BYTES = 100_000
NO_TEXT = "CAST(x'ff00fe' AS TEXT)"
ZEROS = "'" + "0" * 32 + "'"

#: What a row of a ready group, or another table, is made to say. `{name}` stands for the row's own group id.
ROWS: Mapping[str, str] = {
    **{
        f"blob {file[:12]!r}": f"UPDATE groups SET blob = '{file}', blob_offset = 0, blob_hash = {ZEROS} "
        "WHERE group_id = '{name}'"
        for file in (".", "..", "/dev/zero", "../outside", "", "x" * 100_000, "spare", "a" * 32, "b" * 32, "c" * 32)
    },
    **{
        f"{column} = {value[:12]}": f"UPDATE groups SET {column} = {value} WHERE group_id = '{{name}}'"
        for column, values in {
            "blob_offset": ("-1", "4611686018427387904"),
            "blob_hash": ("'x'", "NULL"),
        }.items()
        for value in values
    },
    **{
        f"{column} is {value[:12]}": f"UPDATE groups SET {column} = {value} WHERE group_id = '{{name}}'"
        for column, values in {
            "num_bytes": ("-1", "4611686018427387904"),
            "tries": ("9223372036854775807",),
            "lease_token": ("9223372036854775807",),
            "oldest_version": ("4611686018427387904", "-4611686018427387904"),
            "group_id": ("'no id'", "'other/1'", "'run/99999999999'", f"'{'x' * 100_000}'", "'run/07'"),
            "prompt_index": ("-1", "4611686018427387904"),
            "priority": ("4611686018427387904", "-4611686018427387904"),
        }.items()
        for value in values
    },
    "no payload": "DELETE FROM payloads WHERE sequence = (SELECT sequence FROM groups WHERE group_id = '{name}')",
    "another's payload": "UPDATE payloads SET payload = (SELECT payload FROM payloads ORDER BY sequence LIMIT 1) "
    "WHERE sequence = (SELECT sequence FROM groups WHERE group_id = '{name}')",
}
#: Bytes that are no text, which only one of the engines lets into a row.
SQLITE_ROWS: Mapping[str, str] = {
    **{
        f"{column} is no text": f"UPDATE groups SET {column} = {NO_TEXT} WHERE group_id = '{{name}}'"
        for column in ("group_id", "blob", "blob_hash")
    },
    "a payload without end": "UPDATE payloads SET payload = zeroblob(200000) "
    "WHERE sequence = (SELECT sequence FROM groups WHERE group_id = '{name}')",
}
#: What is left as it is: the row may say so, and the group is sound.
HARMLESS: Mapping[str, str] = {
    f"{column} is {value}": f"UPDATE groups SET {column} = {value} WHERE group_id = '{{name}}'"
    for column, values in {
        "prompt_index": ("900",),
        "priority": ("1000000", "-1000000"),
        "created_s": ("1e308", "-1e308"),
    }.items()
    for value in values
}
#: Rows of the other tables.
OTHERS: Mapping[str, str] = {
    "a turn that can't be counted on": "UPDATE progress SET value = 9223372036854775807 WHERE key = 'consumer_epoch'",
    "no turn": "DELETE FROM progress WHERE key = 'consumer_epoch'",
    "no cursor": "DELETE FROM progress WHERE key = 'next_prompt'",
    "a cursor beyond all prompts": "UPDATE progress SET value = 4611686018427387904 WHERE key = 'next_prompt'",
    "a watermark above the cursor": "UPDATE progress SET value = 4611686018427387904 WHERE key = 'watermark'",
    "a number of nobody": "INSERT INTO progress VALUES ('x', -1)",
    "a negative claim": "INSERT INTO claims VALUES (-5, 'w', -1)",
    "a claim of no prompt": "INSERT INTO claims VALUES (1000000000000, 'w', -1)",
}
SQLITE_OTHERS: Mapping[str, str] = {
    "a worker that is no text": f"INSERT INTO claims VALUES (0, {NO_TEXT}, -1)",
    "a key that is no text": f"INSERT INTO progress VALUES ({NO_TEXT}, 1)",
    "no number left": "INSERT INTO groups (sequence, group_id, prompt_index, state, oldest_version, created_s) "
    "VALUES (9223372036854775807, 'run/500', 500, 'ready', 1, 0)",
}
EVERY = {**ROWS, **SQLITE_ROWS, **HARMLESS, **OTHERS, **SQLITE_OTHERS}


def kinds_of(place: Place) -> dict[str, str]:
    sqlite = not place.url.startswith("postgres")
    return {**ROWS, **HARMLESS, **OTHERS, **({**SQLITE_ROWS, **SQLITE_OTHERS} if sqlite else {})}


def damaged(place: Place, blobs: Path, kinds: Mapping[str, str]) -> tuple[set[str], int]:
    """A queue with a sound group at each end, and one for each kind between; (sound ones, number of damaged)."""
    queue = place.open(blobs=blobs, blob_bytes=10**9, limits=LIMITS)
    count = len(kinds)
    assert queue.producer.claim_prompts("w", count + 2, PACE_OF_ALL, served_step=0) == list(range(count + 2))
    queue.producer.put([(i, make_group(f"run/{i}", seed=i)) for i in range(count + 2)], worker="w")
    sound = {"run/0", f"run/{count + 1}"}
    for number, kind in enumerate(kinds, 1):
        if kind.startswith("blob_"):
            place_of = f"blob = {ZEROS}, blob_offset = 0, blob_hash = {ZEROS}"
            execute(queue, f"UPDATE groups SET {place_of} WHERE group_id = 'run/{number}'")
        if kind in HARMLESS or kind in OTHERS or kind in SQLITE_OTHERS:
            sound.add(f"run/{number}")
    for number, statement in enumerate(kinds.values(), 1):
        execute(queue, statement.replace("{name}", f"run/{number}"))
    queue.close()
    return sound, count + 2 - len(sound)


PACE_OF_ALL = type(PACE)(max_staleness=100, groups_per_step=100, total_steps=1000)


def live(place: Place, blobs: Path) -> tuple[set[str], TrajectoryQueue]:
    """What a life of the learner trains on, with everything that it and a worker beside it do."""
    queue = place.open(blobs=blobs, blob_bytes=10**9, limits=LIMITS, bounds=QueueBounds(max_group_bytes=MAX_BYTES))
    queue.consumer.take_over()
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    trained: set[str] = set()
    while groups := queue.consumer.lease_groups(7, trained_version=1, max_staleness=1).groups:
        names = [group[0].group_id for group in groups]
        queue.consumer.mark_trained(names, completed_steps=len(trained) + 1, trained_version=1)
        queue.consumer.acknowledge(names)
        trained |= set(names)
    for index in queue.producer.claim_prompts(
        "v", 2, PACE_OF_ALL, served_step=10**6
    ):  # one of them may have ended long ago
        assert 0 <= index < 1000, index
        queue.producer.put([(index, make_group(f"run/{index}"))], worker="v")
    assert queue.admin.progress().num_ready > 0
    assert queue.consumer.prompt_cursor() < 1000
    queue.admin.overview()
    return trained, queue


@pytest.mark.parametrize("kind", EVERY)
def test_one_damaged_row_is_buried_and_the_learner_goes_on(kind: str, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "state.db"))
    decoys(tmp_path)
    before = snapshot(tmp_path)
    sound, num_bad = damaged(place, tmp_path / "blobs", {kind: EVERY[kind]})
    try:
        trained, queue = live(place, tmp_path / "blobs")
        assert trained == sound
        dead = queue.admin.dead_letters()
        assert len(dead) == num_bad
        assert all(reason and reason.isprintable() and len(reason) < 500 for _, reason in dead), dead
        assert queue.admin.sweep_blobs() == 0
        queue.consumer.acknowledge([])
        assert snapshot(tmp_path) == before
    finally:
        for opened in place.opened:
            opened.close()


def test_all_damage_at_once_is_buried_on_both_engines(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    decoys(folder)
    sound, num_bad = damaged(place, folder / "blobs", kinds_of(place))
    trained, queue = live(place, folder / "blobs")
    assert trained == sound
    assert len(queue.admin.dead_letters()) == num_bad
    again, _ = live(place, folder / "blobs")
    assert 1 <= len(again) <= 2  # what came at the end of the first life


@pytest.mark.parametrize(
    "file", ["../outside", "c" * 32, "a" * 32, "b" * 32, "spare/../../outside", "/{folder}/outside"]
)
def test_a_file_that_is_none_of_the_queue_s_is_never_moved_or_deleted(file: str, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "state.db"))
    decoys(tmp_path)
    before = snapshot(tmp_path)
    queue = place.open(blobs=tmp_path / "blobs")
    queue.producer.put([(0, make_group("run/0"))])
    file = file.replace("/{folder}", str(tmp_path))
    execute(queue, "UPDATE groups SET blob = ?, blob_offset = 0, blob_hash = ?", (file, "0" * 32))
    queue.consumer.lease_groups(1, trained_version=99, max_staleness=1)
    queue.consumer.acknowledge([])
    assert queue.admin.progress().num_dropped == 1
    assert snapshot(tmp_path) == before
    queue.close()


def decoys(folder: Path) -> None:
    """What names in rows point at: a file outside, a link, a pipe, and a folder, each called as a blob is."""
    blobs = folder / "blobs"
    blobs.mkdir()
    (folder / "outside").write_text("not the queue's")
    (blobs / ("a" * 32)).symlink_to(folder / "outside")
    os.mkfifo(blobs / ("b" * 32))
    (blobs / ("c" * 32)).mkdir()


def snapshot(folder: Path) -> list[tuple[str, int]]:
    """Every file and what kind it is; without those of the database."""
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_mode)
        for path in folder.rglob("*")
        if not path.name.startswith("state.db") and path.name != ".id"
    )


def test_a_reason_that_no_database_takes_is_written_as_one_that_it_takes(place: Place) -> None:
    queue = place.open()
    queue.producer.put([(i, make_group(f"run/{i}")) for i in range(2)])
    queue.consumer.lease_groups(2, trained_version=1, max_staleness=1)
    queue.consumer.bury("run/0", "\x00\ud800\x1b[2J" + "x" * 10**6)
    queue.consumer.reject("run/1", "\x00\ud800")
    ((_, reason),) = queue.admin.dead_letters()
    assert reason.startswith("\\x00\\ud800\\x1b[2J")
    assert len(reason) < 400


@pytest.mark.parametrize(
    ("index", "name", "priority", "message"),
    [
        (1, "run/0", 0, "is put as one of prompt 1, expected 0"),
        (10**12, f"run/{10**12}", 0, "is none, expected <run>/<index"),
        (0, "run/0", 2**31, "priority is 2147483648"),
        (0, "run/0", True, "priority is True"),
        (0, "other/0", 0, "is of another run, expected run/"),
    ],
)
def test_put_refuses_numbers_that_do_not_fit(place: Place, index: int, name: str, priority: Any, message: str) -> None:
    queue = place.open(limits=LIMITS)
    with pytest.raises(ContractError, match=message):
        queue.producer.put([(index, make_group(name))], priority=priority)
    assert queue.admin.progress().num_ready == 0


def test_a_worker_puts_only_what_it_has_claimed(place: Place) -> None:
    queue = place.open()
    assert queue.producer.claim_prompts("a", 2, PACE, served_step=0) == [0, 1]
    for worker, index in (("b", 0), ("a", 7)):
        with pytest.raises(ContractError, match="has claimed, expected"):
            queue.producer.put([(index, make_group(f"run/{index}"))], worker=worker)
    assert queue.admin.progress().num_claimed == 2
    assert queue.producer.put([(0, make_group("run/0"))], worker="a") == 1
    assert queue.producer.put([(0, make_group("run/0"))], worker="a") == 0, "once more, after a lost answer"
    queue.producer.hand_on_claims("a")
    place.clock.now_s += 1000
    assert queue.producer.claim_prompts("b", 1, PACE, served_step=0) == [1]
    with pytest.raises(ContractError, match="b has claimed, expected a"):
        queue.producer.put([(1, make_group("run/1"))], worker="a")
    assert queue.producer.put([(1, make_group("run/1"))], worker="b") == 1


def test_the_database_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    queue = TrajectoryQueue(tmp_path / "deep" / "state.db", blob_bytes=10)
    queue.producer.put([(0, make_group("run/0"))])
    made = [path for path in (tmp_path / "deep").rglob("*") if not path.name.startswith(".")]
    assert {path.name for path in made} >= {"state.db", "state.db-wal", "state.db-blobs"}
    assert {path.name: path.stat().st_mode & 0o077 for path in made} == {path.name: 0 for path in made}
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700
    queue.close()


def test_a_row_that_is_leased_on_another_host_is_refused_there_as_well(place: Place) -> None:
    queue = place.open(limits=LIMITS)
    queue.producer.put([(i, make_group(f"run/{i}", seed=i)) for i in range(2)])

    def swap(session: Session) -> None:
        session.execute("UPDATE payloads SET payload = (SELECT payload FROM payloads ORDER BY sequence LIMIT 1)")

    queue.database.write(swap)
    names = queue.consumer.lease(2, trained_version=1, max_staleness=1).group_ids
    found = place.open(limits=LIMITS).consumer.read(names)
    assert list(found.groups) == ["run/0"]
    assert "holds the payload of group run/0" in found.unreadable["run/1"]

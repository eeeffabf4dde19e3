"""Manifests, hashes and lives of checkpoints, from files that a test wrote: no array is saved here."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learner_jax.checkpoints import folder as checkpoint_folder
from learner_jax.checkpoints import proof as checkpoint_proof
from learner_jax.checkpoints.folder import (
    Found,
    as_path,
    find_checkpoint,
    lives_in,
    newest_step,
    ousted_steps,
)
from learner_jax.checkpoints.hashes import HASHES, FileCheck, check_files, hash_files, write_hashes
from learner_jax.checkpoints.lives import next_life, oust
from learner_jax.checkpoints.manifest import ITEM, ArraySpec, CheckpointError, Manifest, check_arrays, read_manifest
from learner_jax.contracts import Position
from learner_jax.runtime import this_code

POSITION = Position(4, 7, 9, ("run/3/0", "run/3/1"), 0.25, ((6, 3), (7, 4)), life=2)
SPECS = {"state": {"params.a": ArraySpec((2,), "float32")}}


def write(directory: Path, step: int, *, life: int = 0, **changed: Any) -> Path:
    """A checkpoint that is nothing but its manifest, with these fields of the position changed."""
    folder = directory / str(step)
    (folder / "manifest").mkdir(parents=True)
    raw = Manifest(replace(POSITION, completed_steps=step, life=life), "demo", {"a": 1}, this_code(), SPECS).encode()
    raw["position"] |= changed
    (folder / "manifest" / "metadata").write_text(json.dumps(raw))
    return folder


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    found = read_manifest(write(tmp_path, 4, life=2))
    assert found == Manifest(POSITION, "demo", {"a": 1}, this_code(), SPECS)


@pytest.mark.parametrize(
    "changed",
    [
        {"completed_steps": 0},
        {"completed_steps": 2**40},
        {"trained_version": -1},
        {"trained_version": 2**31 - 1},
        {"prompt_cursor": 0},
        {"prompt_cursor": 2**31},
        {"kl_coefficient": 0},
        {"kl_coefficient": 1e12},
        {"steps_of_versions": [[-1, 0], [2**31 - 1, 2**40]]},
        {"consumed_trajectory_ids": []},
    ],
)
def test_what_a_learner_can_save_is_read(changed: dict[str, Any], tmp_path: Path) -> None:
    found = json.loads(json.dumps(read_manifest(write(tmp_path, 1, **changed)).encode()["position"]))
    assert {name: found[name] for name in changed} == changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"completed_steps": -1}, "completed_steps is -1, expected an integer from 0"),
        ({"completed_steps": 2**40 + 1}, "completed_steps is"),
        ({"completed_steps": 1.0}, "completed_steps is 1.0"),
        ({"trained_version": -2}, "trained_version is -2, expected an integer from -1"),
        ({"trained_version": 2**31}, "trained_version is"),
        ({"prompt_cursor": -1}, "prompt_cursor is -1"),
        ({"prompt_cursor": 2**31 + 1}, "prompt_cursor is"),
        ({"kl_coefficient": -0.1}, "kl_coefficient is -0.1, expected 0 or above"),
        ({"kl_coefficient": float("nan")}, "kl_coefficient is nan"),
        ({"kl_coefficient": 1.1e12}, "kl_coefficient is"),
        ({"consumed_trajectory_ids": "run/3/0"}, "consumed_trajectory_ids is run/3/0, expected a list"),
        ({"consumed_trajectory_ids": ["run/3/0", "../3/0"]}, r"group id \.\./3 is none"),
        ({"steps_of_versions": {"1": 2}}, "steps_of_versions is"),
        ({"steps_of_versions": [[-2, 0]]}, "a version is -2"),
        ({"steps_of_versions": [[0, -1]]}, "a step is -1"),
        ({"life": "1"}, "life is '1', expected an integer"),
        ({"life": True}, "life is True"),
    ],
)
def test_what_no_learner_saves_is_damage(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has a damaged manifest: .*{message}"):
        read_manifest(write(tmp_path, 1, **changed))


def test_the_first_array_that_differs_is_told(tmp_path: Path) -> None:
    one, two = ArraySpec((1,), "float32"), ArraySpec((2,), "float32")
    check_arrays({"a": one, "b": two}, {"b": two, "a": one}, tmp_path)
    with pytest.raises(CheckpointError, match=r"b is float32\[1\] in the checkpoint, expected float32\[2\]"):
        check_arrays({"a": one, "b": one, "c": one}, {"a": one, "b": two}, tmp_path)
    with pytest.raises(CheckpointError, match=r"c is float32\[1\] in the checkpoint, expected absent"):
        check_arrays({"a": one, "c": one}, {"a": one}, tmp_path)


@pytest.mark.parametrize(
    ("left", "is_ours"),
    [
        ([ITEM], True),
        ([HASHES], True),
        ([ITEM, HASHES], True),
        ([f"_CHECKPOINT_METADATA with {ITEM}"], True),
        (["_CHECKPOINT_METADATA with state"], False),
        (["state"], False),
        ([], False),
    ],
)
def test_a_checkpoint_is_ours_by_whatever_is_left_of_it(left: list[str], is_ours: bool, tmp_path: Path) -> None:
    for name in left:
        name, _, item = name.partition(" with ")
        (tmp_path / name).write_text(json.dumps({"item_handlers": {item: "x"}}))
    assert Found(tmp_path, tmp_path / "state", 3).is_foreign is not is_ours


# Lives.


def test_a_step_is_late_where_a_later_life_went_on_from_before_it(tmp_path: Path) -> None:
    for step, life in ((1, 1), (5, 1), (3, 2), (6, 2), (7, 2)):
        write(tmp_path, step, life=life)
    (tmp_path / "9").mkdir()  # of nobody: it counts as the newest, and says what is wrong with it
    assert lives_in(tmp_path) == {1: 1, 3: 2, 5: 1, 6: 2, 7: 2, 9: None}
    assert ousted_steps(tmp_path) == [5]
    assert newest_step(tmp_path) == 9
    assert next_life(tmp_path, 0) == 2
    assert next_life(tmp_path, 3) == 5
    assert next_life(tmp_path / "..", 3) == 3


def test_what_is_in_the_way_of_a_life_is_put_aside_and_its_own_is_not(tmp_path: Path) -> None:
    for step, life in ((1, 1), (2, 1), (3, 2), (4, 3)):
        write(tmp_path, step, life=life)
    assert oust(tmp_path, 3) == []
    assert oust(tmp_path, 3, from_step=2) == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.ousted.3", "3.ousted.3", "4"]


def test_the_life_that_is_in_charge_keeps_its_steps(tmp_path: Path) -> None:
    for step, life in ((3, 2), (4, 1)):
        write(tmp_path, step, life=life)
    assert newest_step(tmp_path) == 3
    assert oust(tmp_path, 2, from_step=3) == [4]


# Hashes.


@pytest.fixture
def hashed(tmp_path: Path) -> Path:
    for name in ("a", "state/b", "state/deep/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_hashes(tmp_path)
    return tmp_path


def test_every_file_is_hashed_and_a_changed_lost_or_added_one_is_named(hashed: Path) -> None:
    assert set(json.loads((hashed / HASHES).read_text())["files"]) == {"a", "state/b", "state/deep/c"}
    assert check_files(hashed) == FileCheck(hashed=True)
    (hashed / "beside").write_text("")  # where no loader looks
    assert check_files(hashed).problems == ()
    (hashed / "state" / "deep" / "more").write_text("")
    (hashed / "state" / "b").write_text("state/B")
    (hashed / "a").unlink()
    problems = check_files(hashed).problems
    assert [text.partition(":")[0] for text in problems] == [
        str(hashed / name) for name in ("a", "state/b", "state/deep/more")
    ]


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "state/../../outside"])
def test_hashes_of_one_file_elsewhere_among_others_are_refused(name: str, hashed: Path) -> None:
    record = json.loads((hashed / HASHES).read_text())
    record["files"][name] = [1, "0"]
    (hashed / HASHES).write_text(json.dumps(record))
    (problem,) = check_files(hashed).problems
    assert "expected a table of hashes" in problem


@pytest.mark.parametrize("changed", [{"schema": 2}, {"algorithm": "md5"}])
def test_hashes_of_another_build_are_none(changed: dict[str, Any], hashed: Path) -> None:
    record = json.loads((hashed / HASHES).read_text())
    (hashed / HASHES).write_text(json.dumps(record | changed))
    (hashed / "a").unlink()
    assert check_files(hashed) == FileCheck(hashed=False)


def test_a_file_of_several_blocks_has_the_hash_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    whole = hash_files(tmp_path)
    monkeypatch.setattr("learner_jax.checkpoints.hashes._BLOCK_BYTES", 3)
    assert hash_files(tmp_path) == whole
    assert whole["a"][0] == 10


# Paths.


def test_a_path_is_absolute_and_a_url_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert as_path("c") == tmp_path / "c"
    assert as_path("~/c") == tmp_path / "home" / "c"
    with pytest.raises(CheckpointError, match="gs://bucket/c is a URL, expected a folder"):
        as_path("gs://bucket/c")


def test_a_folder_of_checkpoints_and_one_of_them_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, 3)
    for path in (tmp_path, tmp_path / "3"):
        found = find_checkpoint(path)
        assert (found.folder, found.step, found.item, found.is_foreign) == (
            tmp_path / "3", 3, tmp_path / "3" / "state", False,
        )  # fmt: skip
    (tmp_path / "9" / "default").mkdir(parents=True)
    (tmp_path / "9" / "default" / checkpoint_folder.TREE).write_text("")
    found = find_checkpoint(tmp_path)
    assert (found.step, found.item, found.is_foreign) == (9, tmp_path / "9" / "default", True)


# Proof.


def test_a_proof_waits_for_the_commit_and_sleeps_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[Any] = []
    writing = iter([True, True, False])

    def is_writing() -> bool:
        did.append("looks")
        return next(writing)

    monkeypatch.setattr(checkpoint_proof.time, "sleep", did.append)
    monkeypatch.setattr(checkpoint_proof, "prove", lambda folder, saved: did.append("proves"))
    ended = threading.Event()
    proof = checkpoint_proof.Proof(
        tmp_path, read_manifest(write(tmp_path, 1)), is_writing=is_writing, on_end=lambda *_: ended.set()
    )
    assert ended.wait(30)
    assert did[:6] == ["looks", 0.05, "looks", 0.05, "looks", "proves"]
    proof.require()


@pytest.mark.parametrize(
    ("stopped", "full", "hashed"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_a_checkpoint_goes_without_hashes_where_they_take_too_long_or_find_no_room(
    stopped: bool, full: bool, hashed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_proof, "prove", lambda folder, saved: None)
    if full:
        monkeypatch.setattr(checkpoint_proof, "keep_hashes", no_room)
    told: list[bool] = []
    go_on, ended = threading.Event(), threading.Event()

    def on_end(verified: bool, seconds: float) -> None:
        assert seconds >= 0
        told.append(verified)
        ended.set()

    proof = checkpoint_proof.Proof(
        write(tmp_path, 1), read_manifest(tmp_path / "1"), is_writing=lambda: not go_on.is_set(), on_end=on_end
    )
    assert proof.is_running
    if stopped:
        proof.stop()
    go_on.set()
    assert ended.wait(30)
    assert told == [hashed]
    assert (tmp_path / "1" / HASHES).exists() == hashed
    proof.require()


def test_what_a_proof_found_wrong_is_raised_where_it_is_asked_for(tmp_path: Path) -> None:
    proof = checkpoint_proof.Proof(
        write(tmp_path, 1), read_manifest(tmp_path / "1"), is_writing=lambda: False, on_end=lambda *_: None
    )
    while proof.is_running:
        threading.Event().wait(0.01)
    with pytest.raises(CheckpointError, match="was committed, but is not what a restart would go on from"):
        proof.require()

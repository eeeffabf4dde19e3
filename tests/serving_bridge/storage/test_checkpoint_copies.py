"""Checkpoints in object storage, on a real S3 server: whole or not there, and the newest one is found by name."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner_jax.contracts import CheckpointCopy
from serving_bridge.storage import CheckpointObjects, ContentError, FsspecObjects, StorageError, StorageTimeouts
from tests.conftest import REPOSITORY
from tests.support.memory_objects import MemoryObjects
from tests.support.s3 import S3, Fault

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/run/checkpoints"


@pytest.fixture
def memory() -> MemoryObjects:
    return MemoryObjects(URL)


@pytest.fixture
def copies(s3: S3) -> CheckpointObjects:
    return opened()


def opened(run: str = "run", keep: int = 2) -> CheckpointObjects:
    """As one process opens it; a second passes from each look at its clock to the next."""
    seconds = itertools.count()
    objects = FsspecObjects(
        URL, timeouts=StorageTimeouts(give_up_s=20), sleep=lambda _: None, clock=lambda: float(next(seconds))
    )
    return CheckpointObjects(objects, run=run, keep=keep)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder as Orbax leaves one, with files that hold the text."""

    def made(text: str) -> Path:
        folder = tmp_path / "made" / text
        for name in ("state/d/0a1b", "state/_METADATA", "manifest/metadata", "hashes.json", "state/empty"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("" if name.endswith("empty") else f"{text} {name}" * 9)
        return folder

    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(s3: S3) -> list[str]:
    found = s3.client().list_objects_v2(Bucket="bucket").get("Contents", [])
    return sorted(one["Key"].removeprefix("run/checkpoints/") for one in found)


def test_what_was_kept_is_brought_back_byte_by_byte_and_is_not_copied_twice(
    s3: S3, copies: CheckpointObjects, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    told: list[int] = []
    assert copies.newest() is None
    num_bytes = copies.keep(checkpoint("a"), step=4, life=1, copied=told.append)
    assert num_bytes == sum(told) == sum(map(len, content(checkpoint("a")).values()))
    assert opened().newest() == CheckpointCopy(life=1, step=4, number=1)
    opened().fetch(CheckpointCopy(1, 4, 1), tmp_path / "fetched")
    assert content(tmp_path / "fetched") == content(checkpoint("a"))
    uploads = s3.count("PUT")
    assert copies.keep(checkpoint("a"), step=4, life=1) == 0
    assert s3.count("PUT") == uploads


@pytest.mark.parametrize("kind", ["503", "lost answer"])
def test_an_upload_that_fails_is_tried_again(
    s3: S3, copies: CheckpointObjects, checkpoint: Callable[[str], Path], tmp_path: Path, kind: Any
) -> None:
    s3.faults = [Fault(kind, "PUT", "data/", times=2), Fault(kind, "PUT", "manifests/", times=1)]
    copies.keep(checkpoint("a"), step=4, life=1)
    assert [fault.times for fault in s3.faults] == [0, 0]
    s3.faults = [Fault("truncate", "GET", "data/", times=1)]
    (newest,) = [copies.newest()]
    assert newest == CheckpointCopy(1, 4, 1)
    copies.fetch(newest, tmp_path / "fetched")
    assert content(tmp_path / "fetched") == content(checkpoint("a"))


@pytest.mark.parametrize("target", ["data/.*_METADATA", "manifests/"])
def test_an_upload_that_ends_in_the_middle_is_no_copy_and_leaves_nothing(
    s3: S3, copies: CheckpointObjects, checkpoint: Callable[[str], Path], target: str
) -> None:
    copies.keep(checkpoint("a"), step=4, life=1)
    before = keys(s3)
    s3.faults = [Fault("503", "PUT", target)]
    with pytest.raises(StorageError, match=r"failed at writing"):
        copies.keep(checkpoint("b"), step=8, life=1)
    s3.faults = []
    assert copies.newest() == CheckpointCopy(1, 4, 1)
    assert keys(s3) == before


_KILLED = """
import sys
from pathlib import Path
from serving_bridge.storage import CheckpointObjects, FsspecObjects
CheckpointObjects(FsspecObjects(sys.argv[1]), run="run", keep=2).keep(Path(sys.argv[2]), step=8, life=1)
"""


def test_a_process_that_is_killed_in_the_middle_leaves_no_copy_and_a_later_life_tidies_up(
    s3: S3, copies: CheckpointObjects, checkpoint: Callable[[str], Path]
) -> None:
    copies.keep(checkpoint("a"), step=4, life=1)
    before = keys(s3)
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _KILLED, URL, str(checkpoint("b"))],
        env={**os.environ, "WEIR_CRASH_AT": "copying:3"},
        cwd=REPOSITORY,
        check=False,
    )
    assert killed.returncode == -9
    assert len(keys(s3)) > len(before)
    assert opened().newest() == CheckpointCopy(1, 4, 1)
    opened().keep(checkpoint("c"), step=8, life=2)
    assert opened().newest() == CheckpointCopy(2, 8, 2)
    assert not [key for key in keys(s3) if key.startswith("data/1-8-")]
    assert set(before) <= set(keys(s3))


def test_a_list_that_lags_hides_nothing(s3: S3, copies: CheckpointObjects, checkpoint: Callable[[str], Path]) -> None:
    copies.keep(checkpoint("a"), step=4, life=1)
    assert copies.newest() is not None  # the proxy remembers this list
    s3.faults = [Fault("stale", "GET", "list-type=2")]
    copies.keep(checkpoint("b"), step=8, life=1)
    assert opened().newest() == CheckpointCopy(1, 8, 2)
    copies.keep(checkpoint("c"), step=12, life=1)
    assert opened().newest() == CheckpointCopy(1, 12, 3)


def test_what_a_replaced_learner_commits_late_is_not_gone_on_from(
    memory: MemoryObjects, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    old, new = kept_in(memory), kept_in(memory)
    old.keep(checkpoint("a"), step=4, life=1)
    old.keep(checkpoint("b"), step=8, life=1)
    new.keep(checkpoint("c"), step=6, life=2)
    old.keep(checkpoint("d"), step=12, life=1)
    assert new.newest() == CheckpointCopy(2, 6, 3)
    new.keep(checkpoint("e"), step=10, life=2)
    assert new.newest() == CheckpointCopy(2, 10, 5)
    assert files_of(memory) == {"2-6", "2-10"}
    with pytest.raises(ContentError, match=r"00000004\.json is gone: another learner works on this run"):
        old.fetch(CheckpointCopy(1, 12, 4), tmp_path / "fetched")


def files_of(memory: MemoryObjects) -> set[str]:
    """<life>-<step> of the folders that there are files of."""
    return {"-".join(key.split("/")[1].split("-")[:2]) for key in memory.held if key.startswith("data/")}


def manifests(memory: MemoryObjects) -> list[str]:
    return sorted(key for key in memory.held if key.startswith("manifests/"))


def kept_in(memory: MemoryObjects, keep: int = 2) -> CheckpointObjects:
    return CheckpointObjects(memory, run="run", keep=keep)


def test_only_so_many_are_kept_and_no_number_is_used_again(
    memory: MemoryObjects, checkpoint: Callable[[str], Path]
) -> None:
    for step in (2, 4, 6, 8):
        kept_in(memory).keep(checkpoint("a"), step=step, life=1)
    assert files_of(memory) == {"1-6", "1-8"}
    assert manifests(memory) == [f"manifests/0000000{number}.json" for number in range(1, 5)]


def test_learners_that_commit_at_the_same_time_get_numbers_of_their_own(
    memory: MemoryObjects, checkpoint: Callable[[str], Path]
) -> None:
    folders = [checkpoint(str(life)) for life in range(1, 9)]
    threads = [
        threading.Thread(target=kept_in(memory, keep=9).keep, args=[folder], kwargs={"step": 4, "life": life})
        for life, folder in enumerate(folders, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manifests(memory) == [f"manifests/0000000{number}.json" for number in range(1, 9)]
    newest = kept_in(memory).newest()
    assert newest is not None
    assert newest.life == 8


def test_a_damaged_copy_is_named_and_can_be_left_out_by_a_person(
    memory: MemoryObjects, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    copies = kept_in(memory)
    copies.keep(checkpoint("a"), step=4, life=1)
    copies.keep(checkpoint("b"), step=8, life=1)
    (key,) = [key for key in memory.held if key.startswith("data/1-8-") and key.endswith("0a1b")]
    held = memory.held.pop(key)
    for damaged, said in ((None, "is missing"), (held[:-1], "it was cut"), (b"x" + held[1:], "sha256")):
        if damaged is not None:
            memory.held[key] = damaged
        with pytest.raises(ContentError, match=rf"checkpoint 8 in {URL} is damaged: .*{key} .*{said}"):
            copies.fetch(CheckpointCopy(1, 8, 2), tmp_path / said)
    memory.held["manifests/00000002.json"] = b"removed\n"
    assert copies.newest() == CheckpointCopy(1, 4, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": "other"}, "of the run other, expected run"),
        ({"schema": 2}, "schema 2, expected 1"),
        ({"folder": "data/../../x"}, "the folder"),
        ({"folder": "data/2-4-0123456789abcdef"}, "the folder"),
        ({"files": {"../x": [1, "0" * 64]}}, "no key of an object"),
        ({"files": {"x": [-1, "0" * 64]}}, "the file 'x'"),
        ({"files": {"x": [1, "zz"]}}, "the file 'x'"),
        ({"files": 7}, "AttributeError"),
    ],
)
def test_a_manifest_of_something_else_is_refused_in_one_line(
    memory: MemoryObjects, checkpoint: Callable[[str], Path], change: dict[str, Any], said: str
) -> None:
    kept_in(memory).keep(checkpoint("a"), step=4, life=1)
    (place,) = manifests(memory)
    memory.held[place] = json.dumps(json.loads(memory.held[place]) | change).encode()
    with pytest.raises(ContentError, match=said) as caught:
        kept_in(memory).newest()
    assert "\n" not in str(caught.value)

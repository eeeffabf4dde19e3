"""Files of object storage on a host: fetched once, bounded, shared by processes, never half of one."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from serving_bridge.storage import ContentError, FileCache, StorageError, pieces


class Objects:
    """Implements what a cache asks of `ObjectStore`."""

    url = "s3://bucket/run"

    def __init__(self, **held: bytes) -> None:
        self.held = held
        self.reads: list[tuple[str, int]] = []
        self.fails = 0
        self.pause_s = 0.0

    def get_range(self, key: str, start: int, num_bytes: int) -> bytes:
        self.reads.append((key, start))
        time.sleep(self.pause_s)
        if self.fails:
            self.fails -= 1
            raise StorageError("away")
        if key not in self.held:
            raise FileNotFoundError(key)
        return self.held[key][start : start + num_bytes]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", max_bytes=100)


def fetch(cache: FileCache, objects: Objects, key: str) -> Path:
    content = objects.held[key]
    return cache.fetch(objects, key, sha256=sha256(content), num_bytes=len(content))  # type: ignore[arg-type]


def names(cache: FileCache) -> list[str]:
    return sorted(os.listdir(cache.folder / "files"))


def test_a_file_is_fetched_once_in_pieces_and_for_its_owner_alone(
    cache: FileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 10)
    objects = Objects(a=os.urandom(35))
    path = fetch(cache, objects, "a")
    assert path.read_bytes() == objects.held["a"]
    assert sorted(objects.reads) == [("a", 0), ("a", 10), ("a", 20), ("a", 30)]
    assert fetch(cache, objects, "a") == path
    assert len(objects.reads) == 4
    assert path.stat().st_mode & 0o777 == 0o600
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert names(cache) == [path.name]


def test_what_was_not_used_for_longest_goes_when_there_is_no_room(cache: FileCache) -> None:
    objects = Objects(a=b"a" * 40, b=b"b" * 40, c=b"c" * 40)
    paths = {}
    for age, key in enumerate("ab"):
        paths[key] = fetch(cache, objects, key)
        os.utime(paths[key], (age, age))
    fetch(cache, objects, "a")  # is used again
    paths["c"] = fetch(cache, objects, "c")
    assert [key for key, path in paths.items() if path.exists()] == ["a", "c"]


def test_a_file_larger_than_the_cache_is_there_until_the_next_one(cache: FileCache) -> None:
    objects = Objects(a=b"a" * 400, b=b"b")
    assert fetch(cache, objects, "a").exists()
    fetch(cache, objects, "b")
    assert len(names(cache)) == 1


@pytest.mark.parametrize("held", [b"short", b""], ids=["cut", "empty"])
def test_an_object_that_was_cut_is_no_file(cache: FileCache, held: bytes) -> None:
    objects = Objects(a=held)
    with pytest.raises(ContentError, match=rf"s3://bucket/run/a has {len(held)} bytes, expected 9"):
        cache.fetch(objects, "a", sha256="0" * 64, num_bytes=9)  # type: ignore[arg-type]
    assert names(cache) == []


def test_a_fetch_that_fails_leaves_nothing_and_the_next_one_succeeds(
    cache: FileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_PIECE", 10)
    objects = Objects(a=b"a" * 95)
    objects.fails = 1
    with pytest.raises(StorageError, match="away"):
        fetch(cache, objects, "a")
    assert names(cache) == []
    assert fetch(cache, objects, "a").read_bytes() == objects.held["a"]


def test_processes_that_want_one_file_fetch_it_once(cache: FileCache) -> None:
    objects = Objects(a=b"a" * 50)
    objects.pause_s = 0.2
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(cache, objects, "a"))) for _ in range(4)]
    for thread in threads:  # locks of descriptors, as between processes
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(objects.reads) == 1


def test_one_that_holds_the_lock_for_too_long_is_not_waited_for(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, max_bytes=100, wait_s=0.1)
    objects = Objects(a=b"a" * 50)
    with cache._alone(sha256(objects.held["a"])):
        assert fetch(cache, objects, "a").exists()


def test_what_a_dead_process_left_is_removed(cache: FileCache) -> None:
    objects = Objects(a=b"a" * 5, b=b"b" * 5)
    fetch(cache, objects, "b")
    own = cache.folder / "files" / f".{sha256(objects.held['a'])}.0123"
    old, new = (cache.folder / "files" / f".{'0' * 64}.{number}" for number in range(2))
    for path in (own, old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    path = fetch(cache, objects, "a")
    assert names(cache) == sorted([new.name, path.name, f"{sha256(b'bbbbb')}.safetensors"])


def test_a_file_of_another_size_is_fetched_anew_and_one_that_is_wrong_can_be_dropped(cache: FileCache) -> None:
    objects = Objects(a=b"a" * 5)
    fetch(cache, objects, "a").write_bytes(b"cut")
    path = fetch(cache, objects, "a")
    assert path.read_bytes() == b"aaaaa"
    cache.drop(sha256(b"aaaaa"))
    assert not path.exists()


def test_a_file_that_was_written_here_is_not_fetched(cache: FileCache) -> None:
    objects = Objects(a=b"a" * 5)
    with cache.writing(5) as partial:
        partial.write_bytes(b"a" * 5)
        cache.keep(partial, sha256(b"aaaaa"))
    assert fetch(cache, objects, "a").read_bytes() == b"aaaaa"
    assert objects.reads == []
    with cache.writing(5) as partial:  # of a publish that fails
        partial.write_bytes(b"a")
    assert len(names(cache)) == 1


@pytest.mark.parametrize("name", ["../x", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_hash_is_no_path(cache: FileCache, name: str) -> None:
    with pytest.raises(ValueError, match="is no SHA-256"):
        cache.fetch(Objects(a=b""), "a", sha256=name, num_bytes=0)  # type: ignore[arg-type]

"""What holds on any object store: what is written is read, and of several that make one object only one does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving_bridge.storage import FsspecObjects, ObjectStore


def assert_what_is_written_is_read_listed_and_deleted(objects: FsspecObjects, folder: Path) -> None:
    """On an empty store; it then holds `a2`, of no bytes, and `a/file.bin`, of eight."""
    assert objects.list() == {}
    assert objects.size("a/b") is None
    assert objects.size("a") is None
    objects.put("a/b", b"one")
    objects.put("a/b", b"three")
    objects.put("a2", b"")
    (folder / "file").write_bytes(b"12345678")
    objects.put_file("a/file.bin", folder / "file")
    assert objects.list() == {"a/b": 5, "a2": 0, "a/file.bin": 8}
    assert objects.list("a/") == {"a/b": 5, "a/file.bin": 8}
    assert objects.get("a/b", max_bytes=5) == b"three"
    assert objects.get("a2", max_bytes=5) == b""
    with pytest.raises(ValueError, match="has more than 4 bytes"):
        objects.get("a/b", max_bytes=4)
    assert objects.get_range("a/file.bin", 2, 3) == b"345"
    assert objects.get_range("a/file.bin", 6, 10) == b"78"
    assert objects.get_range("a/file.bin", 8, 10) == b""
    assert objects.size("a/file.bin") == 8
    objects.delete(["a/b", "a/b", "nothing"])
    assert objects.list() == {"a2": 0, "a/file.bin": 8}
    with pytest.raises(FileNotFoundError):
        objects.get("a/b", max_bytes=5)


def assert_only_one_of_many_makes(objects: ObjectStore) -> None:
    made: list[int] = []

    def make(number: int) -> None:
        if objects.put_new("claim", f"{number}".encode()):
            made.append(number)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = made
    assert objects.get("claim", max_bytes=9) == f"{winner}".encode()


def assert_a_second_one_is_refused(objects: ObjectStore) -> None:
    assert objects.put_new("claim", b"mine")
    assert not objects.put_new("claim", b"other")
    assert objects.get("claim", max_bytes=9) == b"mine"

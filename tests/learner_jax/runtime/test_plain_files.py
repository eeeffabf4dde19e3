"""Files of other processes: opened by plain name alone, never through a link, and never more than was asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from learner_jax.runtime import plain_files
from learner_jax.runtime.plain_files import (
    PlainFileError,
    check_name,
    create_plain,
    is_folder,
    is_own_regular,
    is_regular,
    make_folder,
    open_plain,
    opened_folder,
    read_at,
    read_plain,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "inner" / "file").write_bytes(b"of the inner folder")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "inner-link").symlink_to(tmp_path / "inner")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["a", ".a", "A-b_c.1", "x" * 200])
def test_a_plain_name_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "\x1b", "ü", "a\n", "x" * 202, 7])
def test_what_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(PlainFileError, match="is no plain file name"):
        check_name(name)


def test_a_file_is_read_from_its_folder_or_the_one_inside(folder: Path) -> None:
    assert read_plain(folder, "file", max_bytes=7) == b"content"
    assert read_plain(folder, "file", max_bytes=99, inside="inner") == b"of the inner folder"


def test_a_file_above_the_bound_is_refused(folder: Path) -> None:
    with pytest.raises(PlainFileError, match="file has 7 bytes, expected at most 6"):
        read_plain(folder, "file", max_bytes=6)


@pytest.mark.parametrize("name", ["link", "pipe", "inner"])
def test_what_is_no_regular_file_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(PlainFileError, match=f"{name} is no regular file"):
        read_plain(folder, name, max_bytes=99)


def test_what_is_missing_is_missing(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plain(folder, "gone", max_bytes=99)
    with pytest.raises(FileNotFoundError):
        read_plain(folder, "file", max_bytes=99, inside="gone")


def test_a_regular_file_that_may_not_be_opened_is_no_hostile_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    with opened_folder(folder) as descriptor, monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError):
            open_plain("file", descriptor)
        with pytest.raises(PlainFileError, match="inner is no regular file: Permission denied"):
            open_plain("inner", descriptor)


@pytest.mark.parametrize("name", ["inner-link", "file"])
def test_a_folder_is_opened_by_its_own_name_alone(name: str, folder: Path) -> None:
    with pytest.raises(PlainFileError, match=f"{name} is no folder"), opened_folder(folder, name):
        pass


def test_a_path_is_no_name_of_a_folder(folder: Path) -> None:
    with pytest.raises(PlainFileError, match="no plain file name"), opened_folder(folder / "inner", ".."):
        pass


def test_pieces_are_read_from_the_offset_until_enough_or_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_files, "_PIECE", 2)
    with opened_folder(folder) as descriptor:
        file, size = open_plain("file", descriptor)
        try:
            assert size == 7
            assert [read_at(file, *asked) for asked in ((7, 0), (5, 1), (2, 1), (0, 0), (99, 4))] == [
                b"content",
                b"onten",
                b"on",
                b"",
                b"ent",
            ]
        finally:
            os.close(file)


def test_a_new_file_takes_the_place_of_a_link_and_not_of_its_target(folder: Path) -> None:
    before = os.umask(0)
    try:
        for name, mode in (("link", None), ("new", 0o640)):
            descriptor = create_plain(folder / name) if mode is None else create_plain(folder / name, mode)
            os.write(descriptor, b"x")
            os.close(descriptor)
            assert stat.S_IMODE((folder / name).lstat().st_mode) == (mode or 0o600)
    finally:
        os.umask(before)
    assert (folder / "file").read_bytes() == b"content"
    assert is_regular(folder / "link")


@pytest.mark.parametrize(
    ("asks", "true_of"), [(is_regular, {"file"}), (is_folder, {"inner"})], ids=["regular", "folder"]
)
def test_links_are_neither_file_nor_folder(asks: Callable[[Path], bool], true_of: set[str], folder: Path) -> None:
    names = ("file", "inner", "link", "inner-link", "pipe", "gone")
    assert {name for name in names if asks(folder / name)} == true_of


def test_a_file_with_another_name_is_not_ones_own(folder: Path) -> None:
    (folder / "own").write_bytes(b"")
    os.link(folder / "file", folder / "same")
    with os.scandir(folder) as entries:
        assert {entry.name for entry in entries if is_own_regular(entry)} == {"own"}


def test_folders_are_made_for_their_owner_and_those_there_stay(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]
    assert modes == [0o750, 0o700, 0o700]

"""Work that may be killed at any point: what is in the journal is on the disk, and the result is whole."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from learner_jax.conversion import work_folder
from learner_jax.conversion.direct_io import File
from learner_jax.conversion.work_folder import Settler, Work, WorkError, open_work, refuse_used, require_space
from tests.support.disk_effects import effects

__all__ = ["effects"]  # a fixture


def quiet(text: str) -> None:
    """Says nothing."""


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "work" / "result").mkdir(parents=True)
    return Work(tmp_path / "out", tmp_path / "work", tmp_path / "work" / "result", frozenset())


def test_an_empty_folder_may_be_filled_and_a_full_one_or_a_file_not(tmp_path: Path) -> None:
    refuse_used(tmp_path / "gone")
    refuse_used(tmp_path)
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(WorkError, match="is not empty"):
            refuse_used(place)


def test_a_journal_never_stands_without_the_folder_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, the next try would take the journal for its own and find no folder."""
    seen: list[bool] = []
    real = work_folder.write_durably

    def noted(path: Path, *arguments: object, **options: object) -> None:
        seen.append((path.parent / "result").is_dir())
        real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(work_folder, "write_durably", noted)
    with open_work(tmp_path / "out", "mine", quiet):
        pass
    assert seen == [True]


def test_a_result_is_on_the_disk_before_it_has_its_name_and_its_work_ends_after(work: Work, effects: list[str]) -> None:
    (work.result / "file").write_text("x")
    work.publish()
    assert effects == ["sync file 1", "sync result", "rename to out", f"sync {work.out.parent.name}"]
    assert not work.folder.exists()


def test_pieces_are_on_the_disk_before_they_are_in_the_journal(
    work: Work, effects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Work.finish

    def finish(self: Work, pieces: list[str]) -> None:
        effects.append(f"journal {pieces}")
        real(self, pieces)

    monkeypatch.setattr(Work, "finish", finish)
    kept, closed = File(work.result / "kept", size=1), File(work.result / "closed", size=1)
    with Settler(work, every_bytes=10) as settler:
        settler.wrote("1", 4, [kept])
        settler.wrote("2", 5, [closed], close=True)
        assert effects == []
        settler.wrote("3", 1, [kept])
        settler._wait()
        assert effects == ["sync kept 1", "sync closed 1", "journal ['1', '2', '3']", "sync journal 6"]
        effects.clear()
        settler.wrote("4", 9, [kept])
        assert effects == []
        settler.finish()
        assert effects == ["sync kept 1", "journal ['4']", "sync journal 8"]
    assert (work.folder / "journal").read_text() == "1\n2\n3\n4\n"
    kept.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        closed.close()


def test_what_could_not_be_brought_to_the_disk_is_told_and_not_in_the_journal(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = File(work.result / "file", size=1)
    with Settler(work) as settler:
        monkeypatch.setattr("os.fsync", full)
        settler.wrote("1", 1, [file])
        with pytest.raises(OSError, match="No space left"):
            settler.finish()
    file.close()
    assert not (work.folder / "journal").exists()


def test_what_was_to_be_closed_is_closed_where_it_never_came_to_the_disk(work: Work) -> None:
    kept, closed = File(work.result / "kept", size=1), File(work.result / "closed", size=1)
    with Settler(work) as settler:
        settler.wrote("1", 1, [kept])
        settler.wrote("2", 1, [closed], close=True)
    kept.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        closed.close()


def test_a_disk_with_just_enough_room_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 4e9, 5e9))  # type: ignore[attr-defined]
    require_space(tmp_path, int(5e9))
    with pytest.raises(WorkError, match=r"needs 5\.0 GB more, but its disk has 5\.0 GB free"):
        require_space(tmp_path, int(5e9) + 1)


def test_work_of_others_is_thrown_away_whole_and_ones_own_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    out, folder = tmp_path / "out", tmp_path / ".out.converting"
    with suppress(KeyboardInterrupt), open_work(out, "theirs", said.append) as work:
        work.finish(["1"])
        (work.result / "part").write_text("x")
        (folder / "stage").mkdir()
        raise KeyboardInterrupt
    assert said == []
    found: list[object] = []
    with suppress(KeyboardInterrupt), open_work(out, "theirs", said.append) as work:
        found += [work.finished, (work.result / "part").read_text()]
        raise KeyboardInterrupt
    assert found == [{"1"}, "x"]
    assert [text.partition(" in ")[0] for text in said] == ["going on with earlier work"]
    with open_work(out, "mine", said.append) as work:
        assert (work.finished, list(work.result.iterdir()), (folder / "stage").exists()) == (frozenset(), [], False)
    assert said[1].startswith("beginning afresh")


def test_a_journal_without_pieces_is_work_all_the_same_but_nothing_to_tell_of(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        with open_work(tmp_path / "out", "mine", said.append) as work:
            (work.result / "part").write_text("x")
    assert said == []
    assert (work.result / "part").exists()


def test_a_failure_in_the_background_is_told_though_the_next_pieces_are_well(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    file = File(work.result / "file", size=1)
    with Settler(work, every_bytes=1) as settler:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            settler.wrote("1", 1, [file])
            with pytest.raises(OSError, match="No space left"):
                settler._wait()
        with pytest.raises(OSError, match="No space left"):
            settler.wrote("2", 1, [file])
    file.close()

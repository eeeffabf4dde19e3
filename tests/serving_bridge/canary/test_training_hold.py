"""The note to training as a learner sees it: rarely read, never waited for, and kept where it can't be read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving_bridge.canary import CanaryError, TrainingHold, TrainingNote, read_note, training_hold, write_note
from serving_bridge.canary.training_note import note_path
from tests.support.queue_engines import Clock

NOTE = TrainingNote(True, "error is worse", 3, 7, "demo", 9, 5, "demo", 4)
FREE = TrainingNote(False, "", 3, 7, "demo", 9, 5, "demo", 4)
HELD = "entry 7 was rolled back (rollout 3): error is worse"


class Reading(SimpleNamespace):
    hold: TrainingHold
    clock: Clock
    said: list[str]

    def next(self) -> str | None:
        """The answer a second later."""
        self.clock.now_s += 1.0
        return self.hold()


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    clock, said = Clock(), list[str]()
    return Reading(hold=TrainingHold(tmp_path, "default", say=said.append, clock=clock), clock=clock, said=said)


def test_training_is_held_while_the_note_says_so(tmp_path: Path, reading: Reading) -> None:
    assert reading.hold() is None, "no rollout has been"
    write_note(tmp_path, "default", NOTE)
    assert reading.hold() is None, "not looked at again within a second"
    assert reading.next() == HELD
    write_note(tmp_path, "default", FREE)
    assert (reading.hold(), reading.next()) == (HELD, None)
    assert reading.said == []


def tear(note: Path) -> None:
    note.write_bytes(note.read_bytes()[:40])


def fill_up(note: Path) -> None:
    note.write_bytes(b" " * 2**17 + note.read_bytes())


def link(note: Path) -> None:
    note.rename(note.with_suffix(".elsewhere"))
    note.symlink_to(note.with_suffix(".elsewhere"))


def pipe(note: Path) -> None:
    note.unlink()
    os.mkfifo(note)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (tear, "is no note to training"),
    "another form": (lambda note: note.write_text('{"hold": "yes"}'), "is no note to training"),
    "too large": (fill_up, "expected at most"),
    "a link": (link, "no regular file"),
    "a pipe": (pipe, "no regular file"),
    "gone": (lambda note: note.unlink(), "it is gone"),
    "not mounted": (lambda note: note.parents[1].rename(note.parents[1].with_name("away")), "is not there"),
}


@pytest.mark.parametrize("note", [NOTE, FREE], ids=["held", "free"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_can_not_be_read_changes_nothing_and_is_said_once(tmp_path: Path, name: str, note: TrainingNote) -> None:
    root, clock, said = tmp_path / "registry", Clock(), list[str]()
    root.mkdir()
    write_note(root, "default", note)
    hold = TrainingHold(root, "default", say=said.append, clock=clock)
    known = hold()
    assert known == (HELD if note.hold else None)
    damage, match = UNREADABLE[name]
    damage(note_path(root, "default"))
    for _ in range(3):
        clock.now_s += 1.0
        assert hold() == known
    assert len(said) == 1
    assert match in said[0]
    assert ("training is held as before" if note.hold else "training goes on as before") in said[0]
    root.mkdir(exist_ok=True)
    note_path(root, "default").unlink(missing_ok=True)
    write_note(root, "default", FREE)
    clock.now_s += 1.0
    assert hold() is None
    note_path(root, "default").write_text("{")
    clock.now_s += 1.0
    hold()
    assert len(said) == 2, "another fault is told again"


def test_a_disk_that_hangs_is_waited_for_once_and_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_note(tmp_path, "default", NOTE)
    said, asked, freed = list[str](), list[float](), threading.Event()
    hold = TrainingHold(tmp_path, "default", say=said.append, wait_s=0.2)
    assert hold() == HELD

    def hangs(root: Path, namespace: str) -> TrainingNote:
        asked.append(time.monotonic())
        freed.wait(timeout=20)
        return FREE

    monkeypatch.setattr(training_hold, "read_note", hangs)
    monkeypatch.setattr(training_hold, "_READ_S", 0.1)
    monkeypatch.setattr(training_hold, "_EVERY_S", 0.0)
    hold._next_s = 0.0
    began = time.monotonic()
    assert {hold() for _ in range(50)} == {HELD}
    assert time.monotonic() - began < 5, "50 calls wait for one look, of 0.2 s"
    assert (len(asked), len(said)) == (1, 1)
    assert "does not answer" in said[0]
    freed.set()
    deadline = time.monotonic() + 60
    while hold() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_may_not_wait_gets_what_the_look_before_found(tmp_path: Path) -> None:
    write_note(tmp_path, "default", NOTE)
    hold = TrainingHold(tmp_path, "default", say=lambda _: None, wait_s=0.0)
    deadline = time.monotonic() + 60
    while hold() != HELD:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reason_is_one_line_of_plain_text(tmp_path: Path, reading: Reading) -> None:
    write_note(tmp_path, "default", TrainingNote(True, "\x1b[2J\n" + "x" * 5000, 3, 7, "", 0, 5, "", 4))
    reason = reading.hold()
    assert reason is not None
    assert reason.isprintable()
    assert len(reason) < 500


def test_a_registry_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CanaryError, match="expected the folder of a registry"):
        read_note(tmp_path / "nowhere", "default")

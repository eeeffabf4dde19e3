"""The audit log: what was changed, moved or cut is noticed, and a crash's last line is not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serving_bridge.safety import AuditError, AuditLog, verify


def written(folder: Path, count: int = 5) -> Path:
    log = AuditLog(folder)
    for number in range(count):
        log.add({"verdict": "allow", "about": number})
    log.close()
    return folder / "audit.jsonl"


def test_a_log_is_carried_on_and_proven(tmp_path: Path) -> None:
    written(tmp_path)
    path = written(tmp_path)
    assert verify(tmp_path)["audit"].number == 10
    assert not verify(tmp_path)["audit"].problem
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [*range(1, 11)]
    assert path.stat().st_mode & 0o777 == 0o600


def edited(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"allow", b"block"), *lines[2:]]


HARM = {
    "edited": edited,
    "the last edited": lambda lines: [*lines[:-1], lines[-1].replace(b"allow", b"block")],
    "one removed": lambda lines: [*lines[:2], *lines[3:]],
    "two swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
    "cut": lambda lines: lines[:-1],
    "emptied": lambda lines: [],
    "one repeated": lambda lines: [*lines, lines[-1]],
    "half of the last": lambda lines: [*lines[:-1], lines[-1][:20]],
}


@pytest.mark.parametrize("name", HARM)
def test_what_is_not_as_it_was_written_is_noticed(name: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(b"".join(HARM[name](path.read_bytes().splitlines(keepends=True))))
    assert verify(tmp_path)["audit"].problem
    with pytest.raises(AuditError, match="move it away"):
        AuditLog(tmp_path)


@pytest.mark.parametrize("name", ["audit.jsonl", "audit.head"])
def test_a_file_that_is_gone_is_noticed(name: str, tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / name).unlink()
    assert verify(tmp_path)["audit"].problem


def test_the_line_that_a_crash_tore_is_dropped(tmp_path: Path) -> None:
    path = written(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"n": 6, "prev')
    assert verify(tmp_path)["audit"].torn_bytes == 14
    written(tmp_path, count=1)
    assert (verify(tmp_path)["audit"].number, verify(tmp_path)["audit"].problem) == (6, "")


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    with pytest.raises(AuditError, match="another writer"):
        AuditLog(tmp_path)
    AuditLog(tmp_path, "other").close()
    log.close()


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    log.add({"verdict": "allow"})
    with pytest.raises(AuditError, match="No space left"):
        log.flush()
    with pytest.raises(AuditError, match="No space left"):
        log.add({"verdict": "allow"})
    log.close()

"""The audit log: every decision as a line in a chain of hashes, without any of the text that it was about."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.runtime import FILE_MODE, FOLDER_MODE, PLAIN_NAME, WeirError, at

_GENESIS = "0" * 64
_MAX_WAITING = 10_000
_PUT_TIMEOUT_S = 1.0
_POLL_S = 0.5
_CLOSE_TIMEOUT_S = 30.0
_BATCH = 500
_MAX_LINE_BYTES = 1 << 20


class AuditError(WeirError):
    """The audit log can't be written, or is not what was written."""


class AuditLog:
    """A log of one writer: `NAME.jsonl`, and `NAME.head` with the number and hash of the last durable line.

    Lines are written and synced by a thread, beside the answers and never before them. What waits in memory is lost
    when the process is killed; what `flush` has returned for is not.

    Raises:
      AuditError: another process writes the same log, or the log's last lines are missing.
    """

    def __init__(self, folder: Path, name: str = "audit") -> None:
        if PLAIN_NAME.fullmatch(name) is None:
            raise AuditError(f"expected a plain name for an audit log, got {name[:60]!a}")
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._path, self._head = folder / f"{name}.jsonl", folder / f"{name}.head"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            self._begin()
        except BaseException:
            os.close(self._fd)
            raise
        self._waiting: queue.Queue[Mapping[str, Any] | threading.Event | None] = queue.Queue(_MAX_WAITING)
        self._failed: OSError | None = None
        self._thread = threading.Thread(target=self._write_all, name=f"audit {name}", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(f"{self._path} has another writer: give each process a log of its own name") from None
        found = _read_chain(self._path, self._head)
        if found.problem:
            raise AuditError(f"{found.problem}; keep {self._path} for those who look into it, and move it away")
        if found.torn_bytes:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - found.torn_bytes)
        self._number, self._last = found.number, found.last

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a record of plain values; it is durable some milliseconds later.

        Raises:
          AuditError: the log can't be written, or so many records wait that the disk must be stuck.
        """
        if self._failed is not None:
            raise AuditError(f"the audit log {self._path} can't be written: {self._failed}")
        try:
            self._waiting.put(record, timeout=_PUT_TIMEOUT_S)
        except queue.Full:
            raise AuditError(f"{_MAX_WAITING} records wait for the audit log {self._path}") from None

    def flush(self) -> None:
        """Waits, for at most half a minute, until all that was added is on disk."""
        done = threading.Event()
        self._waiting.put(done, timeout=_PUT_TIMEOUT_S)
        if not done.wait(_CLOSE_TIMEOUT_S) or self._failed is not None:
            raise AuditError(f"the audit log {self._path} can't be written: {self._failed or 'no answer in 30 s'}")

    def close(self) -> None:
        """Writes what waits, and lets another writer in."""
        if self._thread.is_alive():
            self._waiting.put(None, timeout=_PUT_TIMEOUT_S)
            self._thread.join(_CLOSE_TIMEOUT_S)
            os.close(self._fd)

    def _write_all(self) -> None:
        while True:
            try:
                batch = [self._waiting.get(timeout=_POLL_S)]
            except queue.Empty:
                continue
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            try:
                if self._failed is None:
                    self._write([item for item in batch if isinstance(item, Mapping)])
            except OSError as error:
                self._failed = error
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            if None in batch:
                return

    def _write(self, records: list[Mapping[str, Any]]) -> None:
        if not records:
            return
        lines = []
        for record in records:
            self._number += 1
            line = _line(self._number, self._last, record)
            self._last = hashlib.sha256(line).hexdigest()
            lines.append(line + b"\n")
        content = b"".join(lines)
        with at(self._path):
            while content:
                content = content[os.write(self._fd, content) :]
            os.fsync(self._fd)
        _write_head(self._head, self._number, self._last)


@dataclass(frozen=True)
class Chain:
    """What was found in a log.

    Attributes:
      number, last: of the last whole line.
      problem: what is wrong; empty if nothing is.
      torn_bytes: of a last line that a crash cut off, after the durable ones.
    """

    number: int
    last: str
    problem: str = ""
    torn_bytes: int = 0


def verify(folder: Path) -> dict[str, Chain]:
    """Reads every log of a folder whole: name -> what was found. An edit, a gap, another order and a cut are problems.

    Who can write both the log and its head can forge both: keep copies of the heads where the writer can't reach.

    Raises:
      AuditError: there is no log.
    """
    logs = {path.stem for path in folder.glob("*.jsonl")} | {path.stem for path in folder.glob("*.head")}
    if not logs:
        raise AuditError(f"there is no audit log in {str(folder)[:300]!a}")
    return {name: _read_chain(folder / f"{name}.jsonl", folder / f"{name}.head") for name in sorted(logs)}


def _line(number: int, last: str, record: Mapping[str, Any]) -> bytes:
    return json.dumps({"n": number, "previous": last, **record}, sort_keys=True, separators=(",", ":")).encode()


def _read_chain(path: Path, head: Path) -> Chain:
    number, last, torn, wanted = 0, _GENESIS, 0, _read_head(head)
    reached = wanted is None or wanted == (0, _GENESIS)
    if not path.exists():
        return Chain(0, _GENESIS, f"{path.name} is missing")
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                torn = len(line)
                break
            problem = _problem(line[:-1], number, last)
            if problem:
                return Chain(number, last, f"{path.name} line {number + 1}: {problem}")
            number, last = number + 1, hashlib.sha256(line[:-1]).hexdigest()
            reached = reached or wanted == (number, last)
    if not reached and wanted is not None:
        return Chain(number, last, f"{path.name} ends at line {number}, and {wanted[0]} lines were durable: it was cut")
    if number and wanted is None:
        return Chain(number, last, f"{head.name} is missing or unreadable, and it says where the log ended")
    return Chain(number, last, torn_bytes=torn)


def _problem(line: bytes, number: int, last: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "expected JSON"
    if not isinstance(record, dict) or record.get("n") != number + 1:
        return f"expected number {number + 1}: lines were removed, added or moved"
    if record.get("previous") != last:
        return "its link does not fit the line before: one of the two was edited"
    return ""


def _read_head(path: Path) -> tuple[int, str] | None:
    try:
        read = json.loads(path.read_bytes()[:1000])
        return int(read["n"]), str(read["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_head(path: Path, number: int, last: str) -> None:
    temporary = path.with_suffix(".head.new")
    with at(path):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        with open(fd, "wb") as file:
            file.write(json.dumps({"n": number, "hash": last}).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

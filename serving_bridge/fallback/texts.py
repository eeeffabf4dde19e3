"""Files of texts that fallbacks left: gateways add lines, which go with their consent or when their time is over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learner_jax.runtime import FILE_MODE, write_durably

#: Folders of `fallback/` in a run's directory that hold texts.
KINDS = ("samples", "examples")
_LOCK = ".lock"


@dataclass(frozen=True)
class Withdrawn:
    """Consent that was taken back.

    Attributes:
      tenant: "" where one session is withdrawn.
      user: hash of the tenant's user; "" for all of them.
      session_id: "" where a tenant's or a user's is withdrawn.
      at_s: what was asked until then goes; wall clock.
    """

    tenant: str
    user: str
    session_id: str
    at_s: float


class _Line(msgspec.Struct):
    """What is read of a line; the rest is left."""

    tenant: str
    user: str | None = None
    session_id: str | None = None
    asked_s: float = 0.0
    kept_until_s: float | None = None


def append(path: Path, line: bytes) -> None:
    """Adds a line to a file of texts. Raises `OSError`."""
    with _locked(path.parent, fcntl.LOCK_SH):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, FILE_MODE)
        try:
            while line:
                line = line[os.write(fd, line) :]
        finally:
            os.close(fd)


def clean_texts(folder: Path, withdrawn: Sequence[Withdrawn], now_s: float) -> int:
    """Removes the lines whose consent was withdrawn, or whose time is over; returns how many.

    A line that can't be read is removed, too: nobody could say whose it is.

    Args:
      folder: `fallback/` of a run's directory.

    Raises:
      OSError: a file can't be read or written; the others are clean.
    """
    removed, failed = 0, None
    for kind in KINDS:
        place = folder / kind
        if not place.is_dir():
            continue
        with _locked(place, fcntl.LOCK_EX):
            for path in sorted(place.glob("*.jsonl")):
                try:
                    removed += _cleaned(path, withdrawn, now_s)
                except OSError as error:
                    failed = error
    if failed is not None:
        raise failed
    return removed


def _cleaned(path: Path, withdrawn: Sequence[Withdrawn], now_s: float) -> int:
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _stays(line, withdrawn, now_s)]
    if len(kept) < len(lines):
        write_durably(path, b"".join(kept))
    return len(lines) - len(kept)


def _stays(content: bytes, withdrawn: Sequence[Withdrawn], now_s: float) -> bool:
    try:
        line = msgspec.json.decode(content, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if line.kept_until_s is not None and line.kept_until_s < now_s:
        return False
    return not any(line.asked_s <= one.at_s and _is_of(line, one) for one in withdrawn)


def _is_of(line: _Line, one: Withdrawn) -> bool:
    """Whether a line is of what was withdrawn; where a line does not say whose it is, it is."""
    if one.session_id:
        return line.session_id == one.session_id
    return line.tenant == one.tenant and (not one.user or line.user is None or line.user == one.user)


@contextmanager
def _locked(place: Path, how: int) -> Iterator[None]:
    """While nobody of this host writes a file anew (shared), or adds to one either (exclusive)."""
    file = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(file, how)
        yield
    finally:
        with suppress(OSError):
            os.close(file)

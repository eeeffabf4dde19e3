"""The end of what a child process wrote."""

from __future__ import annotations

from pathlib import Path

_LINES = 25


def log_tail(path: Path, start: int) -> str:
    """The last lines that a process wrote after byte `start` of its log."""
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(lines[-_LINES:]) or "(nothing was written)"

"""The ends of a run's logs, by process."""

from __future__ import annotations

from pathlib import Path

from learner_jax.runtime import printable
from tools.assembly import RunPaths
from tools.launch.started import LaunchError

_MAX_BYTES = 2**20


def show_logs(paths: RunPaths, process: str, *, lines: int) -> None:
    """Prints the last lines of each log of the run, or of one process's.

    Raises:
      LaunchError: there is none.
    """
    found = {path.stem: path for path in sorted(paths.logs.glob("*.log")) if path.is_file()}
    if process and process not in found:
        raise LaunchError(f"{process!a} has no log in {paths.logs}; there are {', '.join(found) or 'none'}")
    for name, path in found.items():
        if process in ("", name):
            print(f"==> {printable(name)} <==")
            print(printable(_tail(path, lines), keep_lines=True))


def _tail(path: Path, lines: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MAX_BYTES))
        text = file.read(_MAX_BYTES).decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""

"""The directory of a run: which one a start works in, what it may change there, and that it is nobody else's."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.carry_on import Change, changes
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import SHARED_MODE, printable, write_whole
from serving_bridge.database import is_postgres
from serving_bridge.storage import is_url
from serving_bridge.telemetry import MetricsLog, read_metrics
from tools.assembly.paths import RunPaths, in_directory, run_paths, save_for_all

#: What a finished run leaves, which a run that is carried on leaves anew; kept under a number.
_RESULTS = ("summary.json", "report.html", "final_model")


@dataclass(frozen=True)
class Start:
    """What a start works on.

    Attributes:
      config: with the run's directory filled in.
      changes: settings that differ from those that the run had so far.
      reopens: whether the run had finished.
    """

    config: Config
    changes: tuple[Change, ...] = ()
    reopens: bool = False


def choose(config: Config) -> Start:
    """Takes up an unfinished run in the directory that the settings name; a finished one is kept, with a number.

    Raises:
      ConfigError: a setting differs that the run keeps for its life.
    """
    base, number = run_paths(config).directory, 1
    directory = base
    while (directory / "summary.json").exists():
        number += 1
        directory = base.with_name(f"{base.name}-{number}")
    config = in_directory(config, directory)
    saved = directory / "config.toml"
    return Start(config, changes(load_config(saved), config) if saved.exists() else ())


def resume(directory: Path, overrides: Sequence[str]) -> Start:
    """Carries on a run by its directory, also one that has finished.

    Raises:
      ConfigError: there is no run, a setting differs that it keeps for its life, or it has nothing left to do.
    """
    saved = saved_config(directory)
    before = in_directory(load_config(saved), directory.absolute())
    config = in_directory(load_config(saved, overrides), directory.absolute())
    reopens = (directory / "summary.json").exists()
    done = json.loads((directory / "summary.json").read_text(encoding="utf-8")).get("steps", 0) if reopens else 0
    if reopens and config.learner.steps <= done:
        raise ConfigError(
            f"{directory} finished after {done} of learner.steps {config.learner.steps}: nothing is left to do; give "
            f"more by --set learner.steps=N"
        )
    return Start(config, changes(before, config), reopens)


def known(directory: Path) -> RunPaths:
    """The paths of a run that is there. Raises `ConfigError` if there is none."""
    return run_paths(load_config(saved_config(directory)))


def saved_config(directory: Path) -> Path:
    """The file with the settings of a run that is there. Raises `ConfigError` if there is none."""
    saved = directory / "config.toml"
    if not saved.is_file():
        raise ConfigError(f"{directory} holds no config.toml: expected the directory of a run, such as runs/demo")
    return saved


def keep_results(paths: RunPaths) -> None:
    """Puts what a finished run left aside, under the next free number."""
    number = 1
    while any(_numbered(paths.directory / name, number).exists() for name in _RESULTS):
        number += 1
    for name in reversed(_RESULTS):  # the summary last: a run without one is unfinished
        path = paths.directory / name
        if path.exists():
            path.rename(_numbered(path, number))


def record(start: Start, paths: RunPaths, *, process: str = "train") -> None:
    """Saves the settings of a start, and what they change with the checkpoint's step from which on that holds."""
    if start.changes or start.reopens:
        step = max((r["step"] for r in read_metrics(paths.metrics) if r["event"] == "checkpoint"), default=0)
        told = {change.setting: [change.before, change.now] for change in start.changes}
        MetricsLog(paths.metrics, process).write("carried_on", step=step, changes=told)
    save_for_all(start.config, paths)


def tell(found: Sequence[Change]) -> None:
    for change in found:
        print(printable(f"changed: {change}"))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def require_original(config: Config, paths: RunPaths) -> None:
    """Refuses a copy of a run that would act on what its original has outside of the directory.

    A directory that was moved or renamed goes on; a copy that has all inside itself is a run of its own.

    Raises:
      ConfigError: the original is still there, and both would use the same database or store.
    """
    path = paths.directory / "identity.json"
    known = _identity(path)
    if known is not None and known["directory"] != str(paths.directory):
        original = Path(known["directory"])
        is_copy = _identity(original / "identity.json") == known
        if is_copy and (shared := _outside(config, paths)):
            raise ConfigError(
                f"{paths.directory} is a copy of {original}, and both would use {', '.join(shared)}: give the copy "
                f"places of its own, or remove the original"
            )
        known = None if is_copy else {**known, "directory": str(paths.directory)}
        if known is not None:
            _write(path, known)
    if known is None:
        _write(path, {"id": uuid.uuid4().hex, "directory": str(paths.directory)})


def _outside(config: Config, paths: RunPaths) -> list[str]:
    places = {
        "store.database": paths.database,
        "store.blobs": paths.blobs,
        "store.weights": paths.weights,
        **paths.in_storage,
    }
    return [
        f"{setting} {place}"
        for setting, place in places.items()
        if is_postgres(place) or is_url(place) or not Path(place).is_relative_to(paths.directory)
    ]


def _identity(path: Path) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_whole = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("id", "directory"))
    return found if is_whole else None


def _write(path: Path, identity: dict[str, str]) -> None:
    write_whole(path, json.dumps(identity), mode=SHARED_MODE)

"""Where a run keeps what: its paths, and a directory that is its user's alone."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from configs.load import load_config, save_config
from configs.schema import Config
from serving_bridge.database import DatabaseError, absolute_url, is_postgres, sqlite_path
from serving_bridge.processes import sole
from serving_bridge.routing import registry_folder
from serving_bridge.storage import is_url


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps what.

    Attributes:
      blobs, weights: absolute paths, or URLs of places in object storage.
      copies: URL of a place where checkpoints are copied to; empty if they are not.
    """

    directory: Path
    database: str
    blobs: str
    weights: str
    copies: str = ""

    @property
    def in_storage(self) -> dict[str, str]:
        """Setting -> URL of what the run keeps in object storage."""
        places = {"store.weights": self.weights, "store.blobs": self.blobs, "store.checkpoints": self.copies}
        return {setting: place for setting, place in places.items() if is_url(place)}

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def registry(self) -> Path:
        """Folder of the list of replicas and of their keys: beside the weights, or in the run's directory."""
        return registry_folder(self.weights, self.directory)

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def workers_held(self) -> Path:
        """There while rollout workers must wait (`WorkerHold`)."""
        return self.directory / "workers_held"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def anew(self) -> Path:
        """Weights that the run began anew with, and when."""
        return self.directory / "anew"

    @property
    def profile(self) -> Path:
        """Traces of the learner's steps, for Perfetto or XProf."""
        return self.directory / "profile"

    @property
    def created_model(self) -> Path:
        """The model that the run makes for itself."""
        return self.directory / "created_model"

    @property
    def warm_start(self) -> Path:
        """Checkpoint of the supervised start."""
        return self.directory / "warm_start"

    @property
    def start_model(self) -> Path:
        """Hugging Face folder converted from the supervised start's checkpoint."""
        return self.directory / "start_model"

    @property
    def final_model(self) -> Path:
        """Hugging Face folder converted from the last checkpoint."""
        return self.directory / "final_model"


def run_paths(config: Config) -> RunPaths:
    """The absolute paths of a run: in its directory, where [store] does not say otherwise."""
    directory = Path(config.run.directory or f"runs/{config.run.name}").absolute()
    return RunPaths(
        directory=directory,
        database=absolute_url(config.store.database or directory / "state.db", schema=config.run.name),
        blobs=_place(config.store.blobs, directory / "blobs"),
        weights=_place(config.store.weights, directory / "weights"),
        copies=config.store.checkpoints,
    )


def online_database(url: str) -> str:
    """The database of a run's online groups: a file beside the run's, or a schema beside it on the same server."""
    if not is_postgres(url):
        return str(sqlite_path(url).with_name("online.db"))
    head, _, query = url.partition("?")
    named = dict(parse_qsl(query, keep_blank_values=True))
    return f"{head}?{urlencode({**named, 'schema': named.get('schema', 'public') + '_online'})}"


def database_of(place: str) -> str:
    """The database of a run's directory, or the URL itself.

    Raises:
      DatabaseError: there is none.
    """
    config = Path(place) / "config.toml"
    if config.is_file():
        place = run_paths(load_config(config, [])).database
    elif Path(place).is_dir():
        raise DatabaseError(f"{place} has no config.toml: expected the directory of a run, or the URL of a database")
    if not is_postgres(place) and not sqlite_path(place).is_file():
        raise DatabaseError(f"{sqlite_path(place)} does not exist: expected the database of a run that has begun")
    return place


def _place(given: str, default: Path) -> str:
    return given if is_url(given) else str(Path(given).absolute() if given else default)


def in_directory(config: Config, directory: Path) -> Config:
    """The same settings for a run in another directory."""
    return config.model_copy(update={"run": config.run.model_copy(update={"directory": str(directory)})})


def locks(paths: RunPaths) -> Path:
    """Folder of the locks that tell who works on a run; in it `processes`, those of learners and workers."""
    return paths.directory / "locks"


def working(paths: RunPaths, process: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a second process of this name from working on the run at the same time.

    Raises:
      InUseError: there is one.
    """
    return sole(locks(paths) / "processes" / process, f"{process} of {paths.directory}", hint="stop that one first")


def make_private_directory(paths: RunPaths) -> None:
    """Makes the run directory, which others can't look into: it holds what users asked and what the model answered.

    What this process writes from now on is its user's alone, too. What its owner opened to a group stays so.
    """
    os.umask(0o077)
    paths.logs.mkdir(parents=True, exist_ok=True)
    for folder in (paths.directory, paths.logs):
        found = folder.stat()
        if found.st_mode & 0o007 and found.st_uid == os.geteuid():
            folder.chmod(0o700)


def save_for_all(config: Config, paths: RunPaths) -> None:
    """Saves the configuration whole, without what only this host was told; several hosts may do so at once."""
    hosts = config.learner.hosts.model_copy(update={"index": -1})
    learner = config.learner.model_copy(update={"hosts": hosts})
    config = in_directory(config, paths.directory)
    save_config(config.model_copy(update={"learner": learner}), paths.config)

"""Builds the parts of a run from its configuration; what every command shares."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.carry_on import changes
from configs.load import load_config, save_config
from configs.schema import Config
from configs.shipped import shipped_configs
from learner_jax.contracts import ModelConfig, RecordLimits, read_model_config
from learner_jax.runtime import Waits, WeirError, disk_failure, printable
from rewards.contracts import Task
from rewards.tasks import create_task
from serving_bridge.access import FleetKeys
from serving_bridge.database import DiskFullError, absolute_url
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.processes import GuardError, ProcessFailedError, sole
from serving_bridge.queue import Pace, QueueBounds, TrajectoryQueue
from serving_bridge.routing import KEYS_FOLDER, ReplicaRegistry
from serving_bridge.text import load_tokenizer
from serving_bridge.weights import Publisher, WeightStore
from tools.assembly.new_model import CreateModelError, create_model
from tools.reporting import prepare_streams

#: problems whose texts the tokenizer of a created model is trained on
_TOKENIZER_PROBLEMS = 2000
#: Exit status where a disk is full or fails (EX_IOERR of sysexits.h).
DISK_STATUS = os.EX_IOERR
_KEPT = (
    "nothing that was accepted is lost: see to that disk and start again; a learner goes on from its last committed "
    "checkpoint"
)
#: A path that was given can't be used: no bug, but nothing that waiting would change either.
_WRONG_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


@dataclass(frozen=True)
class RunPaths:
    """Where a run keeps what."""

    directory: Path
    database: str
    blobs: Path
    weights: Path

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

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
    directory = Path(config.run.directory or f"runs/{config.run.name}").absolute()
    return RunPaths(
        directory=directory,
        database=absolute_url(config.store.database or directory / "state.db", schema=config.run.name),
        blobs=Path(config.store.blobs).absolute() if config.store.blobs else directory / "blobs",
        weights=Path(config.store.weights).absolute() if config.store.weights else directory / "weights",
    )


def base_model_path(config: Config, paths: RunPaths) -> Path:
    """Where the model folder that the run begins from is, or will be."""
    return paths.created_model if config.model.create else Path(config.model.path)


def base_model_dir(config: Config, paths: RunPaths) -> Path:
    """The model folder that the run begins from: given, or made by whichever process asks first."""
    if config.model.create and not paths.created_model.exists():
        make_model(config, paths.created_model)
    return base_model_path(config, paths)


def make_model(config: Config, out: Path) -> None:
    """Makes the model that [model.create] asks for.

    Raises:
      CreateModelError: it can't be made from these settings.
    """
    shape = config.model.create
    if shape is None:
        raise CreateModelError("there is no [model.create] to make a model by; the run begins from model.path")
    task = build_task(config)
    problems = [task.problem("train", index) for index in range(_TOKENIZER_PROBLEMS)]
    prompts = [config.task.prompt_template.replace("{question}", problem.question) for problem in problems]
    try:
        create_model(out, shape, [*prompts, *(task.target(problem) for problem in problems)], seed=config.run.seed)
    except CreateModelError:
        if not out.exists():  # else another process was quicker, and made the same
            raise


def start_model_dir(config: Config, paths: RunPaths) -> Path:
    """The model that reinforcement learning starts from, and the frozen reference."""
    return paths.start_model if config.warm_start else base_model_dir(config, paths)


def config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --config and --set."""
    shipped = ", ".join(shipped_configs())
    parser.add_argument(
        "--config", required=required, type=Path, help=f"TOML file, or a name that Weir knows: {shipped}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="override one setting, e.g. rollout.max_staleness=0; `none` takes out a table, or a value that need not "
        "be set, e.g. warm_start=none; may be given several times; `weir settings` lists all",
    )


def name_argument(parser: argparse.ArgumentParser, *, default: str, help: str) -> None:  # noqa: A002 - argparse's own
    """Adds --name, which becomes the name of files."""

    def plain(text: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text):
            raise argparse.ArgumentTypeError(f"{text!r}: expected letters, digits, '.', '_' and '-', at most 100")
        return text

    parser.add_argument("--name", default=default, type=plain, help=help)


def profile_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --profile."""
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="trace N of the learner's steps into <run>/profile, for Perfetto or XProf",
    )


def read_arguments(
    parser: argparse.ArgumentParser, *, joins: bool = False
) -> tuple[argparse.Namespace, Config, RunPaths]:
    """Parses the command line; makes the run directory and saves the resolved configuration in it.

    Args:
      joins: the process works on the run, and must have the settings that the run keeps for its life.

    Raises:
      ConfigError: the settings can't be used, or are not those of the run that is there.
    """
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    paths = run_paths(config)
    make_private_directory(paths)
    if not paths.config.exists():
        save_for_all(config, paths)
    if joins:
        changes(load_config(paths.config), config)
    return arguments, config, paths


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


def build_task(config: Config) -> Task:
    return create_task(config.task, seed=config.run.seed)


def build_encoder(config: Config, model_dir: Path) -> tuple[PromptEncoder, ModelConfig]:
    """The prompt encoder of a model folder, checked against the model's vocabulary."""
    model_config = read_model_config(model_dir, family=config.model.family)
    tokenizer = load_tokenizer(model_dir)
    tokenizer.check_vocabulary(model_config)
    if config.task.chat:
        tokenizer.check_chat()
    encoder = PromptEncoder(
        tokenizer,
        template=config.task.prompt_template,
        chat=config.task.chat,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )
    return encoder, model_config


def build_queue(
    config: Config, paths: RunPaths, *, limits: RecordLimits | None = None, waits: Waits | None = None
) -> TrajectoryQueue:
    store = config.store
    return TrajectoryQueue(
        paths.database,
        lease_s=store.lease_s,
        claim_lease_s=store.claim_lease_s,
        max_tries=store.max_tries,
        limits=limits,
        bounds=QueueBounds(
            max_groups=store.max_queued_groups,
            max_bytes=store.max_queued_bytes,
            max_group_bytes=store.max_group_bytes,
            max_age_s=store.max_age_s,
        ),
        blobs=paths.blobs,
        blob_bytes=store.blob_bytes,
        timeout_s=store.database_timeout_s,
        waits=waits,
    )


def record_limits(config: Config, encoder: PromptEncoder, model: ModelConfig) -> RecordLimits:
    """What the run's queue takes in."""
    return RecordLimits(
        vocab_size=model.vocab_size,
        max_length=config.learner.sequence_length,
        group_size=config.rollout.group_size,
        tokenizer=encoder.tokenizer.fingerprint,
        run=config.run.name,
    )


def build_registry(paths: RunPaths) -> ReplicaRegistry:
    return ReplicaRegistry(paths.weights / "replicas")


def build_keys(config: Config, paths: RunPaths) -> FleetKeys:
    """The keys that the tokens of the run's replicas come from."""
    given = config.serving.keys
    return FleetKeys(Path(given).expanduser().absolute() if given else build_registry(paths).folder / KEYS_FOLDER)


def build_store(config: Config, paths: RunPaths) -> WeightStore:
    return WeightStore(paths.weights, config.run.name)


def build_publisher(config: Config, paths: RunPaths, log: Callable[..., None]) -> Publisher:
    return Publisher(build_store(config, paths), config.store, log=log)


def build_pace(config: Config) -> Pace:
    return Pace(
        max_staleness=config.rollout.max_staleness,
        groups_per_step=config.learner.groups_per_step,
        total_steps=config.learner.steps,
    )


class StopRequest:
    """Becomes true on SIGTERM or Ctrl-C; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def ask(self, signum: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def install(self) -> StopRequest:
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)
        return self


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns errors that a person can do something about into one line on stderr and an exit status.

    These are `WeirError`s, with their exit status, and wrong paths. Errors of full or failing disks have `DISK_STATUS`,
    whoever raised them.
    """
    prepare_streams()
    try:
        yield
    except Exception as error:
        text, status = _told(error)
        if text is None:
            raise
        with contextlib.suppress(OSError):  # stderr may be a file on that disk; the status then has to do
            print(f"error: {printable(text, keep_lines=True)}", file=sys.stderr)
        raise SystemExit(status) from None


def _told(error: Exception) -> tuple[str | None, int]:
    """What a person reads of an error, and the exit status; None if it is not one for people."""
    failure = disk_failure(error)
    text = str(error) if isinstance(error, WeirError | GuardError) else None
    if text is None and isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if text is None and failure is not None:
        text = f"{failure.filename or 'a file'} can't be written or read: {failure.strerror}"
    of_child = isinstance(error, ProcessFailedError) and error.status == DISK_STATUS
    if failure is None and not of_child and not isinstance(error, DiskFullError):
        return text, error.exit_status if isinstance(error, WeirError) else 1
    return f"{text}; {_KEPT}", DISK_STATUS

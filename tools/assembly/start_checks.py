"""What is looked at before a command starts: which command looks at what, and the run that the looks share."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from configs.schema import Config
from learner_jax.contracts import ModelConfig, check_weights
from rewards.contracts import Split, Task
from rewards.environments import create_environment
from serving_bridge.checks import Check, Finding, database_findings
from serving_bridge.checks import machine as machine_checks
from serving_bridge.checks import model as model_checks
from serving_bridge.checks import prompts as prompt_checks
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.storage import is_url
from serving_bridge.telemetry import require_opentelemetry
from serving_bridge.vllm import check_engine_args, check_plugin, check_private, detect_platform
from tools.assembly.base_model import base_model_dir, make_model
from tools.assembly.build import build_encoder, build_store, build_task
from tools.assembly.monitoring import port_findings
from tools.assembly.own_code import own_code_findings
from tools.assembly.paths import RunPaths
from tools.assembly.placement import hosts_of
from tools.assembly.row_checks import row_findings
from tools.assembly.storage_checks import storage_checks
from tools.installed import LEARNER, VLLM, installed_version, memory_gib, pinned_versions

Part = Literal["train", "warm_start", "learner", "rollout", "serve", "evaluate"]

_SURVEY_S, _DATABASE_S = 6.0, 5.0
_WORKER_SAMPLE, _SUPERVISED_SAMPLE = 64, 256
#: train problems that are looked at: of files all of them, where the time allows; of generators these
_TRAIN_SAMPLE = 512
_GIB = 2**30
_DEVICES = ("nvidia[0-9]*", "kfd", "accel*", "vfio/[0-9]*")
#: of a learner and of a server beside their arrays, roughly
_PROCESS_GIB = 1.0


class Subject:
    """A run that is looked at, and what its checks share: model, tokenizer and task are read once."""

    def __init__(self, config: Config, paths: RunPaths, model_dir: Path | None, scratch: Path) -> None:
        self.config, self.paths = config, paths
        self._given, self._scratch = model_dir, scratch
        self._lock = threading.Lock()
        self._read: tuple[PromptEncoder, ModelConfig] | None = None
        self._task: Task | None = None

    @property
    def creates_model(self) -> bool:
        """Whether the run makes its model, and has not yet."""
        return self._given is None and self.config.model.create is not None and not self.paths.created_model.exists()

    @property
    def model_dir(self) -> Path:
        """The folder that the run begins from; one like it in a scratch folder where the run is still to make it."""
        if self._given is not None:
            return self._given
        if not self.creates_model:
            return base_model_dir(self.config, self.paths)
        made = self._scratch / "created_model"
        if not made.exists():
            make_model(self.config, made)
        return made

    def encoder(self) -> PromptEncoder:
        return self._model()[0]

    def model(self) -> ModelConfig:
        return self._model()[1]

    def _model(self) -> tuple[PromptEncoder, ModelConfig]:
        with self._lock:
            if self._read is None:
                self._read = build_encoder(self.config, self.model_dir)
            return self._read

    def task(self) -> Task:
        with self._lock:
            if self._task is None:
                self._task = build_task(self.config)
            return self._task

    def close(self) -> None:
        if self._task is not None:
            self._task.close()


@contextmanager
def subject_of(config: Config, paths: RunPaths, model_dir: Path | None) -> Iterator[Subject]:
    """The run that is looked at, with a scratch folder that is gone at the end."""
    scratch = Path(tempfile.mkdtemp(prefix="weir-preflight-"))
    subject = Subject(config, paths, model_dir, scratch)
    try:
        yield subject
    finally:
        subject.close()
        shutil.rmtree(scratch, ignore_errors=True)


def checks_of(part: Part, subject: Subject) -> Iterator[Check]:
    """The checks of a command."""
    config, paths = subject.config, subject.paths
    serves, samples = part in ("train", "serve", "evaluate"), part in ("train", "rollout", "evaluate")
    learns = part in ("train", "learner", "warm_start")
    yield Check("model folder and tokenizer", "model.path", lambda: _nothing(subject.model()))
    if serves and not subject.creates_model:
        yield Check("weights", "model.path", lambda: _weights(subject))
    if serves:
        yield Check("vLLM and its plugin", "vLLM", _vllm)
        yield Check("vLLM's options", "serving.engine_args", lambda: _engine_args(subject))
        yield Check("context and cache", "serving.max_model_len", lambda: _serving(subject))
        yield Check("address", "serving.host", lambda: _address(config))
    if part in ("train", "learner", "rollout", "warm_start", "evaluate"):
        yield Check("problems and prompts", "task", lambda: look_at_problems(part, subject))
    if part in ("train", "rollout"):
        yield Check("environment", "task.environment", lambda: _environment(subject))
    yield Check("metrics", "telemetry.port", lambda: port_findings(part, config))
    if config.telemetry.traces:
        yield Check("traces", "telemetry.traces", _traces)
    yield Check("own code", "run.loggers", lambda: own_code_findings(config))
    yield Check("folders", "run.directory", lambda: machine_checks.folder_findings(_folders(paths)))
    yield from storage_checks(part, config, paths)
    if part in ("train", "learner", "rollout"):
        yield Check("database", "store.database", lambda: _database(config, paths))
    if samples:
        yield Check("open files", "ulimit -n", lambda: _open_files(config))
    if learns:
        yield Check("reference", "learner.loss.kl.reference", lambda: _reference(config))
        yield Check("learning rate", "learner.optimizer.warmup_steps", lambda: _learning_rate(config))
    if part == "train":
        yield from _whole_job(subject)


def _whole_job(subject: Subject) -> Iterator[Check]:
    config, serving = subject.config, subject.config.serving
    yield Check("JAX and the learner's packages", "packages", _packages)
    yield Check("devices", "learner.mesh", lambda: _devices(config))
    yield Check(
        "ports", "serving.port", lambda: machine_checks.port_findings(serving.host, serving.port, serving.replicas)
    )
    yield Check("hosts of a replica", "launch.fleet.hosts", lambda: _hosts_of_replicas(config))
    yield Check("disk space", "disk", lambda: _disk(subject))
    yield Check("memory", "memory", lambda: _memory(subject))
    yield Check("clock", "clock", _clock)
    yield Check("terminal", "terminal", _terminal)


def _learning_rate(config: Config) -> Iterator[Finding]:
    warmup, steps = config.learner.optimizer.warmup_steps, config.learner.steps
    if warmup > steps:
        yield Finding(
            "learner.optimizer.warmup_steps",
            f"at most learner.steps {steps}",
            str(warmup),
            "the learning rate will not be reached, which is well for a short trial only",
            severity="warning",
        )


def _address(config: Config) -> Iterable[Finding]:
    check_private(config.serving.host)
    return ()


def _nothing(_: object) -> Iterable[Finding]:
    """No finding: the look would have raised."""
    return ()


def _environment(subject: Subject) -> Iterable[Finding]:
    environment = create_environment(subject.task(), subject.config.task)
    if end := getattr(environment, "end", None):  # its tools may have processes
        end()
    return ()


def _weights(subject: Subject) -> Iterable[Finding]:
    check_weights(subject.model_dir, subject.model())
    return ()


def _traces() -> Iterable[Finding]:
    require_opentelemetry()
    return ()


def _vllm() -> Iterator[Finding]:
    detect_platform()
    check_plugin()
    yield from _untested(VLLM)


def _engine_args(subject: Subject) -> Iterable[Finding]:
    serving = subject.config.serving
    if serving.engine_args:
        check_engine_args(subject.model_dir, serving, detect_platform())
    return ()


def _packages() -> Iterator[Finding]:
    for name in LEARNER:
        if installed_version(name) is None:
            yield Finding(
                name, "to be installed, for the learner", "not there", "pip install -e '.[cpu]', or [gpu] or [tpu]"
            )
    yield from _untested(LEARNER)


def _untested(names: Sequence[str]) -> Iterator[Finding]:
    tested = pinned_versions()
    for name in names:
        version, pinned = installed_version(name), tested.get(name)
        if version and pinned and version != pinned:
            yield Finding(name, f"{pinned}, which was tested", version, "", "note")


def _serving(subject: Subject) -> Iterable[Finding]:
    return model_checks.serving_findings(subject.model(), subject.config.serving, platform=detect_platform())


def look_at_problems(part: Part, subject: Subject) -> Iterator[Finding]:
    """What is wrong with the problems of a run, and with their prompts; raises `TaskError` where there are none."""
    config, encoder, task = subject.config, subject.encoder(), subject.task()
    rollout, warm_start = config.rollout, config.warm_start
    starts = warm_start is not None and part in ("train", "warm_start") and not subject.paths.start_model.exists()
    asked: dict[Split, tuple[str, int]] = {}
    if part in ("train", "evaluate") or (part == "rollout" and config.evaluation.every):
        asked["heldout"] = ("evaluation.num_problems", config.evaluation.num_problems)
    if starts and warm_start is not None:
        asked["validation"] = ("warm_start.num_validation", warm_start.num_validation)
    yield from row_findings(task)
    distinct = task.num_distinct("train")
    sample = {"train": distinct or _TRAIN_SAMPLE, "rollout": _WORKER_SAMPLE}.get(part, 0)
    yield from prompt_checks.problem_findings(
        task,
        encoder,
        asked=asked,
        answer=rollout.episode_tokens(config.task.turns) - rollout.max_prompt_tokens,
        train_sample=sample,
        limit_s=_SURVEY_S,
    )
    if part in ("train", "learner"):
        yield from prompt_checks.golden_findings(task, encoder, config.learner.num_golden)
    if part in ("train", "rollout"):
        says = config.task.feedback if config.task.environment == "feedback" else None
        yield from prompt_checks.dialog_findings(encoder, feedback=says, turns=config.task.turns)
    if starts:
        yield from prompt_checks.supervised_findings(
            task, encoder, sequence_length=config.learner.sequence_length, sample=_SUPERVISED_SAMPLE
        )


def _folders(paths: RunPaths) -> dict[str, Path]:
    places = {"store.blobs": paths.blobs, "store.weights": paths.weights}
    return {"run.directory": paths.directory} | {
        setting: Path(place) for setting, place in places.items() if not is_url(place)
    }


def _database(config: Config, paths: RunPaths) -> Iterable[Finding]:
    lease_s = min(config.store.lease_s, config.store.claim_lease_s)
    return database_findings(
        paths.database, timeout_s=min(_DATABASE_S, config.store.database_timeout_s), lease_s=lease_s
    )


def _open_files(config: Config) -> Iterable[Finding]:
    rollout, replicas = config.rollout, config.serving.replicas
    at_once = rollout.concurrent_groups * (rollout.group_size + rollout.spare_samples)
    return machine_checks.open_files_findings(
        least=min(at_once, replicas * rollout.min_concurrency), most=min(at_once, replicas * rollout.max_concurrency)
    )


def _reference(config: Config) -> Iterator[Finding]:
    given = config.learner.loss.kl.reference
    if given and not Path(given).expanduser().is_dir():
        yield Finding(
            "learner.loss.kl.reference", "a Hugging Face folder or a checkpoint", f"no folder at {given}", "correct it"
        )


def _devices(config: Config) -> Iterator[Finding]:
    """Only on a CPU the number of devices is known without taking them."""
    fixed = [size for size in config.learner.mesh.sizes if size > 0]
    product, free = 1, len(fixed) < 3
    for size in fixed:
        product *= size
    if _has_accelerator():
        return
    count = config.learner.hosts.count * _cpu_devices()
    if count % product or (product != count and not free):
        yield Finding(
            "learner.mesh",
            f"sizes whose product is {count}, the devices there are (a CPU is one)",
            f"data x fsdp x tensor = {product}{' x n' if free else ''}",
            "change mesh.data, mesh.fsdp or mesh.tensor, or set one of them to -1",
        )


def _has_accelerator() -> bool:
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return False
    return any(True for pattern in _DEVICES for _ in Path("/dev").glob(pattern))


def _cpu_devices() -> int:
    flag = "--xla_force_host_platform_device_count="
    given = [part.removeprefix(flag) for part in os.environ.get("XLA_FLAGS", "").split() if part.startswith(flag)]
    return int(given[-1]) if given and given[-1].isdigit() else 1


def _hosts_of_replicas(config: Config) -> Iterator[Finding]:
    each = config.serving.hosts_per_replica
    if hosts_of(config, "fleet") % each:
        yield Finding(
            "launch.fleet.hosts",
            f"a multiple of serving.hosts_per_replica ({each})",
            str(hosts_of(config, "fleet")),
            "describe the hosts in [launch.fleet]",
        )


def _disk(subject: Subject) -> Iterator[Finding]:
    config, paths = subject.config, subject.paths
    if paths.checkpoints.exists():  # then it has taken its room already
        return
    learner, store = config.learner, config.store
    number = model_checks.model_size(subject.model(), config.serving.dtype).num_parameters
    moments = {"float32": 8, "bfloat16": 6, "factored": 2}[learner.optimizer.moments]
    checkpoint, version = number * (4 + moments), number * model_checks.ITEM_BYTES[learner.publish_dtype]
    start = number * 16 if config.trains_first else 0
    group = min(store.max_group_bytes, config.rollout.group_size * learner.sequence_length * 24)
    waiting = group * learner.groups_per_step * (config.rollout.max_staleness + 2)
    yield from machine_checks.disk_findings(
        [
            (
                "run.directory",
                paths.directory,
                start + checkpoint,
                start + version + checkpoint * (learner.checkpoint.keep + 1),
            ),
            ("store.weights", *_weights_room(config, paths, version)),
            *(
                []
                if is_url(paths.blobs)
                else [("store.blobs", Path(paths.blobs), group, min(waiting, store.max_queued_bytes))]
            ),
        ]
    )


def _weights_room(config: Config, paths: RunPaths, version: float) -> tuple[Path, float, float]:
    """(folder, bytes at once, bytes in time) of versions on this host's disks."""
    store = config.store
    if not is_url(paths.weights):
        return Path(paths.weights), version, version * (store.keep_versions + 1)
    most = min(store.cache_bytes, version * (store.keep_versions + 1))
    return build_store(config, paths).options.cache_folder, version, max(version, most)


def _memory(subject: Subject) -> Iterable[Finding]:
    """Weights, gradients and moments in the learner; weights, their copy and KV cache in each server."""
    if _has_accelerator() or detect_platform() != "cpu":
        return ()
    serving = subject.config.serving
    size = model_checks.model_size(subject.model(), serving.dtype)
    learner = _PROCESS_GIB + size.num_parameters * (4 + 8 + 4 + 4) / _GIB
    server = (
        _PROCESS_GIB
        + serving.cpu_kv_cache_gib
        + size.num_parameters * 2 * model_checks.ITEM_BYTES[serving.dtype] / _GIB
    )
    return machine_checks.memory_findings(learner + serving.replicas * server, memory_gib())


def _clock() -> Iterable[Finding]:
    built_s = Path(__file__).stat().st_mtime
    return machine_checks.clock_findings(time.time(), built_s=built_s, server_s=None, lease_s=1.0)


def _terminal() -> Iterable[Finding]:
    return machine_checks.terminal_findings(
        is_terminal=sys.stdout.isatty(),
        columns=shutil.get_terminal_size().columns,
        encoding=sys.stdout.encoding or "unknown",
    )

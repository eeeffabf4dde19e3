"""Builds the parts of a run from its configuration: task, encoder, queue, stores, keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from configs.schema import Config
from learner_jax.contracts import CheckpointCopies, ModelConfig, RecordLimits, TrajectorySource, read_model_config
from learner_jax.runtime import NO_SPANS, Spans, Waits
from rewards.contracts import Task
from rewards.environments import declared_tools
from rewards.tasks import create_task
from serving_bridge.access import FleetKeys
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.queue import MixedSource, Pace, QueueBounds, TrajectoryQueue, online_run
from serving_bridge.registry import Registry, RegistryError, read_trusted_keys
from serving_bridge.routing import KEYS_FOLDER, ReplicaRegistry, registry_folder
from serving_bridge.storage import CheckpointObjects, FsspecObjects, StorageTimeouts
from serving_bridge.telemetry import open_traces
from serving_bridge.text import load_tokenizer
from serving_bridge.weights import Publisher, ShelfOptions, WeightStore
from tools.assembly.paths import RunPaths, online_database
from tools.assembly.recorded_sessions import opened_recordings

if TYPE_CHECKING:
    from serving_bridge.canary import TrainingHold

#: waited for the registry's index, by processes that go on with what they knew before
_INDEX_S = 5.0


def build_task(config: Config) -> Task:
    """The task that the run trains on; its problems follow from the run's seed."""
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
        tools=declared_tools(config.task),
    )
    return encoder, model_config


def build_queue(
    config: Config,
    paths: RunPaths,
    *,
    limits: RecordLimits | None = None,
    waits: Waits | None = None,
    erases: bool = False,
) -> TrajectoryQueue:
    """The run's queue, with the bounds of [store]; without `limits`, records are not checked against a model.

    Args:
      erases: as `TrajectoryQueue` has it.
    """
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
        storage_timeout_s=store.storage_timeout_s,
        timeout_s=store.database_timeout_s,
        waits=waits,
        erases=erases,
    )


def build_online_queue(
    config: Config, paths: RunPaths, *, limits: RecordLimits | None = None, waits: Waits | None = None
) -> TrajectoryQueue:
    """The queue of the run's online groups: of any size, beside that of its rollouts."""
    found = None if limits is None else replace(limits, run=online_run(limits.run), group_size=0)
    beside = replace(paths, database=online_database(paths.database), blobs=f"{paths.blobs}-online")
    return build_queue(config, beside, limits=found, waits=waits, erases=True)


@contextmanager
def learner_source(
    config: Config, paths: RunPaths, queue: TrajectoryQueue, *, limits: RecordLimits, waits: Waits | None = None
) -> Iterator[TrajectorySource]:
    """Where the learner takes groups from: the queue of rollouts; with learner.online.share that of sessions, too."""
    settings = config.learner
    if not settings.online_groups:
        yield queue.consumer
        return
    from serving_bridge.feedback import groups_trained, withdrawn_groups  # which most runs need not import

    online = build_online_queue(config, paths, limits=limits, waits=waits)
    try:
        with opened_recordings(paths.database, timeout_s=config.store.database_timeout_s) as (database, _):
            yield MixedSource(
                queue.consumer,
                online.consumer,
                run=config.run.name,
                per_step=settings.online_groups,
                max_staleness=settings.online.max_staleness,
                withdrawn=partial(withdrawn_groups, database),
                trained=partial(groups_trained, database),
            )
    finally:
        online.close()


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
    """The list of the run's replicas."""
    return ReplicaRegistry(paths.registry)


def build_keys(config: Config, paths: RunPaths, replicas: ReplicaRegistry | None = None) -> FleetKeys:
    """The keys that the tokens of replicas come from; by default of the run's."""
    given, beside = config.serving.keys, (replicas or build_registry(paths)).folder / KEYS_FOLDER
    return FleetKeys(Path(given).expanduser().absolute() if given else beside)


def build_serving_registry(config: Config) -> Registry:
    """The registry whose aliases fleets and gateways follow. Its index must answer within seconds.

    Raises:
      RegistryError: there is none at registry.path, or registry.trusted_key is no key.
    """
    folder = Path(config.registry.path).expanduser().absolute()
    if not folder.is_dir():
        raise RegistryError(
            f"registry.path {folder} does not exist: expected a registry (tools.registry add makes one)"
        )
    key = config.registry.trusted_key
    trusted = read_trusted_keys(Path(key).expanduser().absolute()) if key else None
    return Registry(
        folder,
        database=config.registry.database or None,
        timeout_s=_INDEX_S,
        options=_shelf_options(config),
        trusted=trusted,
    )


def build_hold(config: Config, log: Callable[..., None], *, wait_s: float = 2.0) -> TrainingHold | None:
    """Why the registry's canary has training wait, None where it may go on; None altogether without a registry.

    Args:
      log: told of "hold_unread", once, where that can't be read.
      wait_s: seconds that a call waits for the disk at most.
    """
    settings = config.registry
    if not settings.path:
        return None
    from serving_bridge.canary import TrainingHold  # which most runs need not import

    root = Path(settings.path).expanduser().absolute()
    return TrainingHold(root, settings.namespace, say=lambda error: log("hold_unread", error=error), wait_s=wait_s)


class AnewCalls(TypedDict):
    """What `learner_jax.loop.Anew` is told by a registry."""

    asked: Callable[[], int | None]
    fetch: Callable[[int, Path], None]


def anew_calls(config: Config, hold: TrainingHold | None) -> AnewCalls:
    """What a registry says of beginning anew: the number of the rollout after which, and that entry's model folder.

    Args:
      hold: None on hosts that are not asked.
    """
    run = config.run.name

    def asked() -> int | None:
        note = hold.anew(run) if hold is not None else None
        return None if note is None else note.rollout

    def fetch(number: int, folder: Path) -> None:
        note = hold.anew(run) if hold is not None else None
        if note is None or note.rollout != number:
            raise RegistryError(f"what {run} was to begin anew with after rollout {number} is not asked for any more")
        registry = build_serving_registry(config)
        try:
            standing = registry.index.standing(config.registry.namespace, note.good_entry)
            registry.export(standing, folder, readme=f"{standing.entry.id}: {run} began anew with it.\n")
        finally:
            registry.close()

    return AnewCalls(asked=asked, fetch=fetch)


def build_arm_replicas(config: Config, registry: Registry) -> ReplicaRegistry:
    """The list of the replicas that follow a registry's aliases: in its folder, also where weights are elsewhere."""
    namespace = config.registry.namespace
    beside = registry.root / "weights" / namespace
    return ReplicaRegistry(registry_folder(registry.weights.store(namespace).address, beside))


def build_store(config: Config, paths: RunPaths) -> WeightStore:
    """The store of the run's policy versions."""
    return WeightStore(paths.weights, config.run.name, _shelf_options(config))


def _shelf_options(config: Config) -> ShelfOptions:
    store = config.store
    return ShelfOptions(
        cache=Path(store.cache).expanduser().absolute() if store.cache else None,
        cache_bytes=store.cache_bytes,
        timeout_s=store.storage_timeout_s,
    )


def build_publisher(config: Config, paths: RunPaths, log: Callable[..., None]) -> Publisher:
    """What writes the learner's versions to the store; `log` takes an event's name and its fields."""
    return Publisher(build_store(config, paths), config.store, log=log)


def build_copies(config: Config, paths: RunPaths) -> CheckpointCopies | None:
    """Where the learner's checkpoints are copied to, None if they are not."""
    if not paths.copies:
        return None
    objects = FsspecObjects(paths.copies, timeouts=StorageTimeouts(give_up_s=config.store.storage_timeout_s))
    return CheckpointObjects(objects, run=config.run.name, keep=config.learner.checkpoint.keep)


@contextmanager
def traced(config: Config, process: str) -> Iterator[Spans]:
    """Where a process tells its spans, as [telemetry] says; what is left is sent at the end.

    Raises:
      DoorError: OpenTelemetry is not installed.
    """
    if not config.telemetry.traces:
        yield NO_SPANS
        return
    spans = open_traces(run=config.run.name, process=process, share=config.telemetry.traces)
    try:
        yield spans
    finally:
        spans.close()


def build_pace(config: Config) -> Pace:
    """How many groups workers may begin, by staleness, in policy versions, and the run's length, in steps."""
    return Pace(
        max_staleness=config.rollout.max_staleness,
        groups_per_step=config.learner.groups_per_step,
        total_steps=config.learner.steps,
    )

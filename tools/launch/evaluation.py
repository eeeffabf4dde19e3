"""Held-out skill of the weights that a replica of the fleet serves, or of a model folder on a server of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Config
from learner_jax.contracts import ContractError, WeightManifest
from learner_jax.runtime import Waits, WeirError
from rewards.environments import create_environment, end_environment
from serving_bridge.evaluation import Evaluation, Play, PromptEncoder, evaluate, single_answers
from serving_bridge.fleet import Replica
from serving_bridge.rollout import HeldOutEpisodes, plays_episodes
from serving_bridge.routing import ReplicaRow
from serving_bridge.vllm import VllmClient, http_session
from serving_bridge.weights import StoreError, difference_from
from tools.assembly import (
    RunPaths,
    base_model_dir,
    build_encoder,
    build_keys,
    build_registry,
    build_store,
    build_task,
)

#: Names the weights that a server was started with, so that its answers carry a version.
_FOLDER_VERSION = 0
_POLL_S = 0.1


class NotServedError(WeirError, RuntimeError):
    """The fleet can't be asked for the skill of a version."""


@dataclass(frozen=True)
class ServedSkill:
    """What a replica showed, and the version that sampled all of its answers."""

    result: Evaluation
    manifest: WeightManifest

    def require(self, model_dir: Path) -> None:
        """Raises `NotServedError` unless a model folder holds the very weights of that version."""
        try:
            difference = difference_from(model_dir, self.manifest)
        except StoreError as error:
            difference = str(error)
        if difference is not None:
            raise NotServedError(difference)


async def evaluate_replica(config: Config, paths: RunPaths, replica: ReplicaRow) -> Evaluation:
    """Asks a replica of the fleet. Raises `ReplicaError` where it does not answer all."""
    encoder, _ = build_encoder(config, base_model_dir(config, paths))
    token = build_keys(config, paths).token("inference", replica.url, replica.start)
    async with http_session() as session:
        return await _evaluated(config, VllmClient(replica.url, session, token=token), encoder)


async def evaluate_newest(config: Config, paths: RunPaths, waits: Waits) -> ServedSkill:
    """Asks a replica that serves the newest version, once there is one; nothing may be published meanwhile.

    Raises:
      NotServedError: no replica served it in time, or all the way.
      ReplicaError: the replica does not answer all.
    """
    try:
        manifest = build_store(config, paths).newest()
    except (StoreError, ContractError) as error:
        raise NotServedError(str(error)) from error
    if manifest is None:
        raise NotServedError("nothing was published")
    registry, version = build_registry(paths), manifest.version
    with waits.waiting(
        f"a replica that serves version {version}",
        on="fleet",
        limit_s=config.serving.update_timeout_s,
        setting="serving.update_timeout_s",
        error=NotServedError,
    ) as wait:
        while not (serving := [replica for replica in registry.ready() if replica.version == version]):
            await wait.pause(_POLL_S)
    result = await evaluate_replica(config, paths, serving[0])
    if set(result.versions) != {version}:
        raise NotServedError(f"answers are of versions {result.versions}, expected all of version {version}")
    return ServedSkill(result, manifest)


async def evaluate_folder(config: Config, paths: RunPaths, model_dir: Path) -> Evaluation:
    """Starts one vLLM replica on the folder, evaluates, and stops it."""
    encoder, _ = build_encoder(config, model_dir)
    async with http_session() as session:
        replica = Replica(
            "evaluation",
            model_dir,
            config.serving,
            session,
            log_path=paths.logs / "evaluation.log",
            model_family=config.model.family,
        )
        await replica.start()
        try:
            await replica.client.control().name_version(_FOLDER_VERSION)
            return await _evaluated(config, replica.client, encoder)
        finally:
            await replica.stop()


async def _evaluated(config: Config, client: VllmClient, encoder: PromptEncoder) -> Evaluation:
    """Skill by the run's own environment; the processes that judge and play end with it."""
    settings, rollout = config.evaluation, config.rollout
    with ExitStack() as stack:
        task = build_task(config)
        stack.callback(task.close)
        environment = create_environment(task, config.task)
        stack.callback(end_environment, environment)
        scoring = ThreadPoolExecutor(rollout.reward_threads, thread_name_prefix="weir-score")
        stack.callback(scoring.shutdown, wait=False, cancel_futures=True)
        play: Play = (
            HeldOutEpisodes(environment, encoder, settings, rollout, scoring=scoring)
            if plays_episodes(environment)
            else single_answers(task, encoder, settings, rollout, scoring=scoring)
        )
        return await evaluate(
            client,
            task,
            encoder,
            play,
            num_problems=settings.num_problems,
            num_samples=settings.num_samples_shown,
        )

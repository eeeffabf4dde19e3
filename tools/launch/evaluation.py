"""Skill of a model folder, measured through a vLLM server of its own."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from configs.schema import Config
from serving_bridge.evaluation import Evaluation, evaluate
from serving_bridge.fleet import Replica
from tools.assembly import RunPaths, build_encoder, build_task

#: Names the weights that a server was started with, so that its answers carry a version.
_FOLDER_VERSION = 0


async def evaluate_folder(config: Config, paths: RunPaths, model_dir: Path) -> Evaluation:
    """Starts one vLLM replica on the folder, evaluates, and stops it."""
    encoder, _ = build_encoder(config, model_dir)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
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
            return await evaluate(
                replica.client,
                build_task(config),
                encoder,
                num_problems=config.evaluation.num_problems,
                max_tokens=config.evaluation.max_tokens or config.rollout.max_tokens,
                num_samples=config.evaluation.num_samples_shown,
                timeout_s=config.rollout.request_timeout_s,
                temperature=config.evaluation.temperature,
                reward_timeout_s=config.rollout.reward_timeout_s,
            )
        finally:
            await replica.stop()

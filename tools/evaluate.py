"""Measures skill on held-out problems through vLLM, on the weights of a Hugging Face folder.

python -m tools.evaluate --config runs/demo/config.toml --model runs/demo/final_model
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp

from configs.schema import Config
from serving_bridge.evaluation import Evaluation, evaluate
from serving_bridge.fleet import Replica
from tools.assembly import wiring
from tools.assembly.preflight import preflight
from tools.assembly.wiring import RunPaths
from tools.command_line import command_parser

#: Names the weights that a server was started with, so that its answers carry a version.
_FOLDER_VERSION = 0


async def evaluate_folder(config: Config, paths: RunPaths, model_dir: Path) -> Evaluation:
    """Starts one vLLM replica on the folder, evaluates, and stops it."""
    encoder, _ = wiring.build_encoder(config, model_dir)
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
            await replica.client.name_version(_FOLDER_VERSION)
            return await evaluate(
                replica.client,
                wiring.build_task(config),
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


def main() -> None:
    parser = command_parser("evaluate", __doc__)
    wiring.config_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder, e.g. from tools.convert")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, samples included")
    with wiring.clear_errors():
        arguments, config, paths = wiring.read_arguments(parser)
        preflight("evaluate", config, paths, model_dir=arguments.model)
        result = asyncio.run(evaluate_folder(config, paths, arguments.model))
    if arguments.json:
        print(json.dumps(result.as_fields(), indent=1))
        return
    for sample in result.samples:
        score = f"no verdict: {sample.verdict}" if sample.score is None else f"score {sample.score:g}"
        print(f"{sample.prompt!r} -> {sample.answer!r} (expected {sample.expected!r}, {score})")
    print(f"accuracy {result.accuracy:.1%}, mean score {result.mean_score:.3f} over {result.num_problems} problems")
    for note in result.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()

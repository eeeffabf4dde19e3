"""Runs one rollout worker against the replicas in the run's registry.

python -m tools.rollout --config runs/demo/config.toml --name worker-0
"""

from __future__ import annotations

import argparse
import asyncio

from rewards.feedback import create_environment
from serving_bridge.rollout import RolloutWorker, RunIdentity
from tools import wiring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wiring.config_arguments(parser)
    parser.add_argument("--name", default="worker-0", help="unique among the workers that run at the same time")
    with wiring.clear_errors():
        arguments, config, paths = wiring.read_arguments(parser)
        encoder, model_config = wiring.build_encoder(config, wiring.base_model_dir(config, paths))
        task = wiring.build_task(config)
        worker = RolloutWorker(
            name=arguments.name,
            identity=RunIdentity(config.run.name, config.rollout.group_size),
            task=task,
            encoder=encoder,
            queue=wiring.build_queue(config, paths),
            registry=wiring.build_registry(paths),
            settings=config.rollout,
            evaluation=config.evaluation,
            pace=wiring.build_pace(config),
            log=wiring.metrics_writer(paths, "rollout"),
            should_stop=wiring.StopRequest().install(),
            environment=create_environment(task, config.task),
            vocab_size=model_config.vocab_size,
            renew_every_s=config.store.claim_lease_s / 4,
        )
        asyncio.run(worker.run())


if __name__ == "__main__":
    main()

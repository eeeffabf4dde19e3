"""Runs one rollout worker against the replicas in the run's registry.

python -m tools.rollout --config runs/demo/config.toml --name worker-0
"""

from __future__ import annotations

import asyncio
import time

from learner_jax.runtime import Waits, keep_freed_memory
from rewards.environments import create_environment
from serving_bridge.rollout import RolloutWorker, RunIdentity, awaits_work
from serving_bridge.telemetry import reported_waits
from tools.assembly import collect_garbage_less_often, metrics_log, preflight, wiring
from tools.command_line import command_parser


def main() -> None:
    parser = command_parser("rollout", __doc__)
    wiring.config_arguments(parser)
    wiring.name_argument(parser, default="worker-0", help="unique among the workers that run at the same time")
    keep_freed_memory()
    with wiring.clear_errors():
        arguments, config, paths = wiring.read_arguments(parser, joins=True)
        preflight("rollout", config, paths)
        encoder, model_config = wiring.build_encoder(config, wiring.base_model_dir(config, paths))
        task = wiring.build_task(config)
        log, waits = metrics_log(config, paths, "rollout").write, Waits()
        stop = wiring.StopRequest().install()
        limits = wiring.record_limits(config, encoder, model_config)
        queue = wiring.build_queue(config, paths, limits=limits, waits=waits)
        worker = RolloutWorker(
            name=arguments.name,
            identity=RunIdentity(config.run.name, config.rollout.group_size),
            task=task,
            encoder=encoder,
            queue=queue.producer,
            registry=wiring.build_registry(paths),
            settings=config.rollout,
            evaluation=config.evaluation,
            pace=wiring.build_pace(config),
            log=log,
            waits=waits,
            should_stop=stop,
            environment=create_environment(task, config.task),
            vocab_size=model_config.vocab_size,
            keys=wiring.build_keys(config, paths),
            renew_every_s=config.store.claim_lease_s / 4,
        )
        collect_garbage_less_often()
        alone = wiring.working(paths, f"rollout-{arguments.name}")
        with alone, reported_waits(waits, log, clock=time.monotonic):
            if awaits_work(
                queue.producer,
                total_steps=config.learner.steps,
                max_wait_s=config.rollout.max_wait_s,
                waits=waits,
                should_stop=stop,
            ):
                asyncio.run(worker.run())
            elif not stop():
                print(f"run {config.run.name} has made all of its {config.learner.steps} steps: there is nothing to do")


if __name__ == "__main__":
    main()

"""Runs one rollout worker against the replicas in the run's registry.

python -m tools.rollout --config runs/demo/config.toml --name worker-0
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from learner_jax.runtime import Waits, keep_freed_memory
from rewards.environments import create_environment
from rewards.settings import TaskSettings
from rewards.tasks import delayed_sources, played_task
from serving_bridge.queue import Delay
from serving_bridge.rollout import LeaveOut, RolloutWorker, RunIdentity, awaits_work
from serving_bridge.telemetry import reported_waits
from tools.assembly import (
    StopRequest,
    base_model_dir,
    build_encoder,
    build_hold,
    build_keys,
    build_pace,
    build_queue,
    build_registry,
    build_task,
    clear_errors,
    collect_garbage_less_often,
    config_arguments,
    metrics_log,
    name_argument,
    preflight,
    read_arguments,
    record_limits,
    traced,
    wait_while_held,
    watched,
    working,
)
from tools.command_line import command_parser


def left_out_by(task: TaskSettings) -> dict[str, LeaveOut]:
    """Which problems a measured curriculum passes over, by the label of their source."""
    sources = dict(zip(task.labels(), task.sources, strict=True)) if task.sources else {"": task}
    return {
        label: LeaveOut(source.curriculum.groups, source.curriculum.kept_share)
        for label, source in sources.items()
        if source.curriculum is not None and source.curriculum.measured
    }


def delays_by(task: TaskSettings) -> dict[str, Delay]:
    """How long groups wait for rewards that come later, by the label of their source."""
    return {label: Delay(table.window_s, table.timeout_score) for label, table in delayed_sources(task).items()}


def main() -> None:
    parser = command_parser("rollout", __doc__)
    config_arguments(parser)
    name_argument(parser, default="worker-0", help="unique among the workers that run at the same time")
    keep_freed_memory()
    with clear_errors():
        arguments, config, paths = read_arguments(parser, joins=True)
        preflight("rollout", config, paths)
        events = metrics_log(config, paths, "rollout")
        log, waits = watched(events, config, paths, "rollout", f"rollout-{arguments.name}").write, Waits()
        encoder, model_config = build_encoder(config, base_model_dir(config, paths))
        task = build_task(config)
        stop = StopRequest().install()
        limits = record_limits(config, encoder, model_config)
        queue = build_queue(config, paths, limits=limits, waits=waits)
        played = played_task(task, config.task)
        environment = create_environment(played, config.task)
        worker = RolloutWorker(
            name=arguments.name,
            identity=RunIdentity(config.run.name, config.rollout.group_size),
            task=task,
            encoder=encoder,
            queue=queue.producer,
            registry=build_registry(paths),
            settings=config.rollout,
            evaluation=config.evaluation,
            pace=build_pace(config),
            log=log,
            waits=waits,
            should_stop=stop,
            hold=build_hold(config, log, wait_s=0.0),
            environment=environment,
            heldout_environment=environment if played is task else create_environment(task, config.task),
            leave_out=left_out_by(config.task),
            rewards=queue.rewards,
            delays=delays_by(config.task),
            vocab_size=model_config.vocab_size,
            keys=build_keys(config, paths),
            renew_every_s=config.store.claim_lease_s / 4,
        )
        collect_garbage_less_often()
        name = f"rollout-{arguments.name}"
        alone = working(paths, name)
        with alone, reported_waits(waits, log, clock=time.monotonic), traced(config, name) as spans:
            bound = config.rollout.max_wait_s
            if not wait_while_held(paths.workers_held, max_wait_s=bound, waits=waits, should_stop=stop):
                return
            if awaits_work(
                queue.producer,
                total_steps=config.learner.steps,
                max_wait_s=bound,
                waits=waits,
                should_stop=stop,
            ):
                asyncio.run(replace(worker, spans=spans).run())
            elif not stop():
                print(f"run {config.run.name} has made all of its {config.learner.steps} steps: there is nothing to do")


if __name__ == "__main__":
    main()

"""Runs the learner: supervised start, or reinforcement learning from the queue, on the devices of one or more hosts.

    python -m tools.learner --config runs/demo/config.toml [--warm-start] [--profile N]

With learner.hosts.count above 1, the same command runs once per host, with --set learner.hosts.index=0, 1, ... where
no cluster environment gives the index. The host with index 0 leads: it alone writes metrics.jsonl, weights and states
of the queue; the others log to logs/learner-<index>.jsonl. [supervised] trains on all hosts, [warm_start] on the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from configs.carry_on import changes
from configs.load import ConfigError, load_config
from configs.paths import PATH_SETTINGS
from configs.schema import Config
from learner_jax.batches import Example, ExampleStream, Pairs, RandomAccess
from learner_jax.checkpoints import Checkpoints, Position, restore_parameters
from learner_jax.contracts import ModelConfig
from learner_jax.conversion import Watch, to_hf
from learner_jax.hosts import Hosts, connect, ends_at_once, require_shared
from learner_jax.loop import Anew, Learner, Outcome, Profiler, code_facts, environment_facts, flat, folder_facts
from learner_jax.models import load_parameters
from learner_jax.runtime import NO_SPANS, Spans, Waits, keep_freed_memory, tell_once
from learner_jax.settings import LossSettings, SupervisedSettings, WarmStartSettings
from learner_jax.training import (
    Engine,
    Params,
    TrainState,
    fine_tune,
    fine_tuning_objective,
    keep_compiled,
    objective,
    warm_start,
)
from rewards.contracts import Split
from serving_bridge.checks import golden_prompts
from serving_bridge.processes import python_module
from serving_bridge.telemetry import reported_waits
from tools.assembly import (
    RunPaths,
    Start,
    StopRequest,
    anew_calls,
    base_model_dir,
    build_copies,
    build_encoder,
    build_hold,
    build_publisher,
    build_queue,
    build_task,
    clear_errors,
    config_arguments,
    learner_metrics_writer,
    learner_source,
    preflight,
    profile_argument,
    read_arguments,
    record_limits,
    run_directory,
    start_model_dir,
    traced,
    working,
)
from tools.command_line import command_parser
from tools.learner_examples import supervised_examples

#: Settings that may differ between hosts: each may see the same folders elsewhere. What they hold is compared.
_OF_EACH_HOST = (*PATH_SETTINGS, "learner.hosts.index", "learner.hosts.coordinator")


def run_warm_start(config: Config, paths: RunPaths) -> float | None:
    """Trains the supervised start, saves it and converts it; returns the accuracy reached, None if it was there."""
    if config.warm_start is None:
        raise ConfigError(
            "--warm-start needs to be told how far to go: add a [warm_start] or [supervised] table to the configuration"
        )
    base = base_model_dir(config, paths)
    accuracy = None
    checkpoints = Checkpoints(paths.warm_start, keep=1, run=config.run.name, config=config.model_dump(mode="json"))
    if checkpoints.latest_step() is None:  # else an earlier life got this far
        state, accuracy = _supervised_state(config, config.warm_start, paths, base)
        checkpoints.save(state, Position(0, -1, 0, ()))
    checkpoints.close()
    if not paths.start_model.exists():
        _convert_start(config, paths, base)
    return accuracy


def _supervised_state(
    config: Config, settings: WarmStartSettings, paths: RunPaths, base: Path
) -> tuple[TrainState, float]:
    task = build_task(config)
    encoder, model_config = build_encoder(config, base)
    optimizer = config.learner.optimizer.model_copy(update={"learning_rate": settings.learning_rate})
    learner = config.learner.model_copy(update={"optimizer": optimizer, "loss": LossSettings()})
    engine = Engine(learner, model_config, objective=objective.supervised, temperature=1.0)
    state = engine.init_state(load_parameters(base, model_config), seed=config.run.seed)

    def example(split: Split, index: int) -> Example:
        problem = task.problem(split, index)
        return encoder.supervised(problem, task.target(problem))

    return warm_start(
        engine,
        state,
        settings,
        train_example=lambda index: example("train", index),
        validation_example=lambda index: example("validation", index),
        log=learner_metrics_writer(config, paths, 0),
    )


def train_first(config: Config, paths: RunPaths) -> str:
    """Runs the supervised stage that the configuration has.

    Returns:
      What to tell of it; "" on another host than the first.
    """
    if config.supervised is not None:
        return _supervised_stage(config, paths, config.supervised)
    with working(paths, "warm_start"):
        accuracy = run_warm_start(config, paths)
    reached = "is there already"
    if accuracy is not None:
        reached = f"reached {accuracy:.1%} greedy accuracy on validation problems"
    return f"supervised start {reached}: {paths.start_model}"


def _supervised_stage(config: Config, paths: RunPaths, settings: SupervisedSettings) -> str:
    with contextlib.ExitStack() as alone:
        with connect_hosts(config, Waits()) as hosts:
            alone.enter_context(working(paths, f"warm_start-{hosts.index}" if hosts.index else "warm_start"))
            done = run_supervised(config, paths, settings, hosts)
        if not hosts.is_leader:
            return ""
        if done < settings.steps:
            left = f" of {settings.steps}; the same command goes on"
            return f"supervised training made {done} steps{left}: {paths.warm_start}"
        if not paths.start_model.exists():
            _convert_start(config, paths, base_model_dir(config, paths), is_alone=hosts.count == 1)
        return f"supervised training made {done} steps: {paths.start_model}"


def run_supervised(config: Config, paths: RunPaths, settings: SupervisedSettings, hosts: Hosts) -> int:
    """Trains on the examples of [supervised], from the newest checkpoint on.

    Returns:
      Steps that are done: fewer than asked for if a stop was.
    """
    stop = StopRequest().install()
    require_shared(hosts, paths.directory, "run.directory")
    log = learner_metrics_writer(config, paths, hosts.index)
    hosts.log_failures(log)
    if hosts.is_leader:
        base_model_dir(config, paths)  # is made, or fetched, by one
    hosts.barrier("the model that training begins with")
    base = base_model_dir(config, paths)
    checkpoints = Checkpoints(
        paths.warm_start, keep=2, run=config.run.name, config=config.model_dump(mode="json"), waits=hosts.waits
    )
    try:
        with hosts.telling():
            done = int(hosts.agree(checkpoints.latest_step() or 0, "the newest supervised checkpoint"))
            if done < settings.steps:
                done = _fine_tuned(config, settings, paths, base, checkpoints, stop, hosts, log)
            return done
    finally:
        checkpoints.close()


def _fine_tuned(
    config: Config,
    settings: SupervisedSettings,
    paths: RunPaths,
    base: Path,
    checkpoints: Checkpoints,
    should_stop: Callable[[], bool],
    hosts: Hosts,
    log: Callable[..., None],
) -> int:
    encoder, model_config = build_encoder(config, base)
    if hosts.is_leader:
        supervised_examples(config, settings, paths.directory, encoder)  # are rendered by one
    hosts.barrier("the supervised examples")
    files = supervised_examples(config, settings, paths.directory, encoder)
    optimizer = config.learner.optimizer.model_copy(update={"learning_rate": settings.learning_rate})
    learner = config.learner.model_copy(update={"optimizer": optimizer, "loss": LossSettings()})
    engine = Engine(learner, model_config, objective=fine_tuning_objective(settings), temperature=1.0, hosts=hosts)
    start = load_parameters(base, model_config, shardings=engine.parameter_shardings)
    state, first_step = engine.init_state(start, seed=config.run.seed), 0
    if checkpoints.latest_step() is not None:
        state, position, _ = checkpoints.restore(state)
        first_step = position.completed_steps
    examples: RandomAccess[Any] = Pairs(files) if settings.loss == "dpo" else files
    stream = ExampleStream(examples, batch_size=settings.batch_size, seed=config.run.seed)

    def save(state: TrainState, step: int) -> None:
        checkpoints.save(state, Position(step, -1, 0, ()))

    _, done = fine_tune(
        engine,
        state,
        settings,
        start=start,
        examples=stream.since(first_step),
        first_step=first_step,
        save=save,
        log=log,
        should_stop=should_stop,
        hosts=hosts,
    )
    return done


def _convert_start(config: Config, paths: RunPaths, base: Path, *, is_alone: bool = True) -> None:
    """The newest supervised checkpoint as the Hugging Face folder that reinforcement learning starts from.

    Args:
      is_alone: whether this process is the only one. In one of several JAX still counts the hosts that have left:
        a process of its own converts.
    """
    if not is_alone:
        command = [*python_module("tools.convert"), "to-hf", "--checkpoint", str(paths.warm_start)]
        command += ["--model", str(base), "--out", str(paths.start_model), "--dtype", "float32"]
        family = ["--family", config.model.family] if config.model.family else []
        if status := subprocess.run([*command, *family], check=False).returncode:
            raise SystemExit(status)  # it has said why
        return
    to_hf(
        paths.warm_start,
        model_dir=base,
        out=paths.start_model,
        dtype="float32",
        family=config.model.family,
        watch=Watch(say=_warn),
    )


def connect_hosts(config: Config, waits: Waits) -> Hosts:
    """Joins the learner's other processes, if it has any."""
    if config.learner.cpu_cores:  # before JAX looks how many threads to start
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.learner.cpu_cores])
    facts = {}
    if config.learner.hosts.count > 1:
        settings = flat(config.model_dump(mode="json"), without=_OF_EACH_HOST)
        facts = {"settings": settings, "code": code_facts(), "environment": environment_facts()}
    # The leader may itself wait for groups, and then for the disk, before it answers.
    return connect(config.learner.hosts, timeout_s=2 * config.learner.max_wait_s + 60, facts=facts, waits=waits)


def run_reinforcement(
    config: Config, paths: RunPaths, hosts: Hosts, *, profile_steps: int = 0, spans: Spans = NO_SPANS
) -> Outcome:
    """Runs the loop until it ends or the process is asked to stop; traces some of its steps if asked to."""
    stop = StopRequest().install()  # a host that only waits for the others has nothing to save
    while True:
        outcome = _one_life(config, paths, hosts, stop, profile_steps=profile_steps, spans=spans)
        if outcome.reason != "anew":
            return outcome


def _one_life(
    config: Config, paths: RunPaths, hosts: Hosts, stop: StopRequest, *, profile_steps: int, spans: Spans
) -> Outcome:
    require_shared(hosts, paths.checkpoints, "run.directory")
    log = learner_metrics_writer(config, paths, hosts.index)
    hosts.log_failures(log)
    model_dir = start_model_dir(config, paths)
    encoder, model_config = build_encoder(config, model_dir)
    engine = Engine(
        config.learner,
        model_config,
        objective=objective.reinforcement(config.learner.loss),
        temperature=config.rollout.temperature,
        hosts=hosts,
    )
    task = build_task(config)
    golden = golden_prompts(task, encoder, config.learner.num_golden)
    require_same_inputs(config, model_dir, golden, hosts)
    limits = record_limits(config, encoder, model_config)
    queue = build_queue(config, paths, limits=limits, waits=hosts.waits)
    publisher = build_publisher(config, paths, log)
    checkpoints = Checkpoints(
        paths.checkpoints,
        keep=config.learner.checkpoint.keep,
        run=config.run.name,
        config=config.model_dump(mode="json"),
        log=log,
        waits=hosts.waits,
        copies=build_copies(config, paths) if hosts.is_leader else None,
    )
    sources = contextlib.ExitStack()
    try:
        source = sources.enter_context(learner_source(config, paths, queue, limits=limits, waits=hosts.waits))
        hold = build_hold(config, log) if hosts.is_leader else None
        load = partial(load_parameters, config=model_config, shardings=engine.parameter_shardings)
        learner = Learner(
            engine,
            load_parameters(model_dir, model_config, shardings=engine.parameter_shardings),
            seed=config.run.seed,
            source=source,
            publisher=publisher,
            checkpoints=checkpoints,
            golden_prompts=golden,
            max_staleness=config.rollout.max_staleness,
            log=log,
            should_stop=stop,
            hold=hold,
            anew=Anew(paths.anew, **anew_calls(config, hold), load=load) if config.registry.path else None,
            reference_params=kl_reference(config, engine, model_config),
            profiler=Profiler(paths.profile / f"host-{hosts.index}", profile_steps),
            waits=hosts.waits,
            spans=spans if hosts.is_leader else NO_SPANS,
        )
        with reported_waits(hosts.waits, log, clock=time.monotonic), hosts.telling():
            outcome = learner.run()
        if outcome.reason != "anew":
            log("ended", reason=outcome.reason, step=outcome.position.completed_steps)
        return outcome
    finally:
        publisher.close()
        checkpoints.close()
        sources.close()
        queue.close()


def require_same_inputs(config: Config, model_dir: Path, golden: list[list[int]], hosts: Hosts) -> None:
    """Refuses hosts that read another model, KL reference or task, under whatever path each has them.

    Raises:
      HostError: some do; the message names what differs.
    """
    if hosts.count == 1:
        return
    hosts.require_same("model folder", folder_facts(model_dir))
    if config.learner.loss.kl.reference:
        hosts.require_same("KL reference", folder_facts(Path(config.learner.loss.kl.reference).expanduser()))
    hosts.require_same("task's validation problems", {"golden prompts": json.dumps(golden)})


def kl_reference(config: Config, engine: Engine, model_config: ModelConfig) -> Params | None:
    """The policy that learner.loss.kl.reference names: a Hugging Face folder or an Orbax checkpoint; None if empty."""
    if not config.learner.loss.kl.reference:
        return None
    path = Path(config.learner.loss.kl.reference)
    if (path / "config.json").exists():
        return load_parameters(path, model_config, shardings=engine.parameter_shardings)
    return engine.placed(restore_parameters(path, say=_warn))


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = command_parser("learner", __doc__)
    config_arguments(parser)
    parser.add_argument("--warm-start", action="store_true", help="run only the supervised start")
    parser.add_argument("--take-over", action="store_true", help="replace a learner of this run that hangs somewhere")
    profile_argument(parser)
    tell_once()
    keep_freed_memory()
    with ends_at_once(), clear_errors():
        arguments, config, paths = read_arguments(parser, joins=True)
        preflight("warm_start" if arguments.warm_start else "learner", config, paths)
        if config.learner.compilation_cache and config.learner.hosts.count == 1:
            # Hosts that compile together wait for each other: all of them must find a program, or none.
            keep_compiled(_warn)
        if arguments.warm_start:
            if told := train_first(config, paths):
                print(told)
        else:
            with connect_hosts(config, Waits()) as hosts:
                alone = working(paths, f"learner-{hosts.index}")
                with contextlib.nullcontext() if arguments.take_over else alone:
                    if hosts.is_leader:
                        found = changes(load_config(paths.config), config)
                        run_directory.record(Start(config, found), paths, process="learner")
                        run_directory.tell(found)
                    with traced(config, f"learner-{hosts.index}") as spans:
                        outcome = run_reinforcement(config, paths, hosts, profile_steps=arguments.profile, spans=spans)
            if hosts.is_leader:
                print(f"learner {outcome.reason} after {outcome.position.completed_steps} steps")


if __name__ == "__main__":
    main()

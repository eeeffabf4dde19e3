"""Runs a whole training job on one machine: fleet, rollout worker and learner as processes of their own.

    python -m tools.train --config configs/demo.toml [--set rollout.max_staleness=0] [--profile N]

An unfinished run directory is taken up where it stopped; a finished one is left alone and a new one is begun. A process
that ends with an error is started again, a bounded number of times, and the others go on; with learner.hosts.count
above 1 the learner is that many processes, which are started again together.

SIGTERM or Ctrl-C stops all of them in order, with the learner's state saved, and a second one at once; either way the
same command goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from configs.load import ConfigError, load_config, save_config
from configs.schema import Config
from learner_jax.disk_errors import at
from learner_jax.roll_call import SECRET
from learner_jax.waits import Waits
from serving_bridge.evaluation import Evaluation, evaluate
from serving_bridge.registry import ReplicaRow
from serving_bridge.server_checks import check_plugin, claim_port, detect_platform
from serving_bridge.supervisor import Supervisor
from serving_bridge.telemetry import MetricsLog, MetricsTail, read_metrics
from serving_bridge.vllm_client import ReplicaError, VllmClient
from serving_bridge.wait_reporter import reported_waits
from tools import wiring
from tools.evaluate import evaluate_folder
from tools.report import headline, write_report, write_summary
from tools.view import LiveView
from tools.wiring import RunPaths

T = TypeVar("T")

_TICK_S = 0.25
#: restarts of each process within an hour
_RESTARTS = {"serve": 3, "warm_start": 1, "learner": 3, "rollout": 5}
#: beyond draining, what a fleet takes to end
_SERVE_GRACE_S = 40.0
_LEARNER_GRACE_S = 60.0
_EVALUATION_TRIES = 3
_INTERRUPTED = 130
_LOOPBACK = "127.0.0.1"


class TrainError(RuntimeError):
    """The job can't go on."""


class Job:
    """One run of the job; everything it starts is stopped when it ends, however it ends."""

    def __init__(
        self,
        config: Config,
        paths: RunPaths,
        view: LiveView,
        should_stop: Callable[[], bool],
        *,
        profile_steps: int = 0,
    ):
        self._config = config
        self._profile_steps = profile_steps
        self._paths = paths
        self._view = view
        self._should_stop = should_stop
        self._metrics = MetricsLog(paths.metrics, "train")
        self._tail = MetricsTail(paths.metrics)
        self._waits = Waits()

    def run(self) -> bool:
        """Returns whether the run is complete (and not stopped in between)."""
        config, paths = self._config, self._paths
        wiring.base_model_dir(config, paths)  # made here, before the processes that need it start
        with (
            reported_waits(self._waits, self._metrics.write, clock=time.monotonic),
            Supervisor(
                paths.logs, self._metrics.write, waits=self._waits, also=self._config.serving.environment
            ) as supervisor,
        ):
            self._phase("starting")
            serve_grace_s = config.serving.drain_timeout_s + _SERVE_GRACE_S
            self._start(supervisor, "serve", self._command("tools.serve"), grace_s=serve_grace_s)
            if config.warm_start and not paths.start_model.exists():
                self._phase("supervised start")
                self._start(supervisor, "warm_start", self._command("tools.learner", "--warm-start"))
                self._watch(supervisor, until=lambda: supervisor.has_finished("warm_start"))
            self._start_learner(supervisor)
            self._measure_before(supervisor)
            self._phase("training")
            self._start(supervisor, "rollout", self._command("tools.rollout"))
            self._watch(supervisor, until=lambda: supervisor.has_finished("learner"))
            if self._should_stop():
                return False
            self._phase("evaluating")
            for name in ("rollout", "serve"):
                supervisor.ask_to_stop(name)
            self._measure_after(supervisor)
            if self._should_stop():
                return False
        self._phase("finished")
        return True

    def _start(self, supervisor: Supervisor, name: str, command: Sequence[str], *, grace_s: float = 30.0) -> None:
        supervisor.start(name, command, restarts=_RESTARTS[name], grace_s=grace_s)

    def _start_learner(self, supervisor: Supervisor) -> None:
        """One process, or as many as learner.hosts.count says, which can only go on together."""
        hosts = self._config.learner.hosts
        supervisor.start_group(
            "learner",
            self._learner_commands,
            restarts=_RESTARTS["learner"],
            grace_s=_LEARNER_GRACE_S,
            end_s=hosts.heartbeat_timeout_s + _LEARNER_GRACE_S,
        )

    def _learner_commands(self) -> list[list[str]]:
        hosts = self._config.learner.hosts
        command = self._command("tools.learner", "--profile", str(self._profile_steps))
        if hosts.count == 1:
            return [command]
        # Other users of this machine can reach the port, and don't know this.
        os.environ.setdefault(SECRET, secrets.token_hex(32))
        # A port of its own for each start: the one before may still be held by what is ending.
        address = hosts.coordinator or f"{_LOOPBACK}:{claim_port(_LOOPBACK, 0)}"
        told = ["--set", f"learner.hosts.coordinator={address}", "--set"]
        return [[*command, *told, f"learner.hosts.index={index}"] for index in range(hosts.count)]

    def _command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, "--config", str(self._paths.config), *arguments]

    def _watch(self, supervisor: Supervisor, *, until: Callable[[], bool]) -> None:
        """Keeps the view fresh and the processes alive until something holds or a stop is asked for."""
        while not until() and not self._should_stop():
            supervisor.check()
            self._update_view()
            time.sleep(_TICK_S)
        if not self._should_stop():
            supervisor.check()
        self._update_view()

    def _update_view(self) -> None:
        self._view.update(self._tail.read())

    def _phase(self, name: str) -> None:
        self._metrics.write("phase", name=name)
        self._update_view()

    def _measured(self, which: str) -> bool:
        return any(r["event"] == "evaluation" and r["which"] == which for r in read_metrics(self._paths.metrics))

    def _measure_before(self, supervisor: Supervisor) -> None:
        """Held-out skill of the first published version, through the fleet, before anything is trained."""
        registry = wiring.build_registry(self._paths)
        for tries_left in reversed(range(_EVALUATION_TRIES)):
            self._watch(supervisor, until=lambda: bool(registry.ready()) or supervisor.has_finished("learner"))
            ready = registry.ready()
            if not ready or self._measured("before") or self._should_stop():
                return
            try:
                result = self._meanwhile(supervisor, self._evaluate_on(ready[0]))
            except ReplicaError as error:
                if not (error.retryable and tries_left):
                    raise
                self._metrics.write("retry", error=f"held-out evaluation before training: {error}")
                time.sleep(_TICK_S)
                continue
            if result is not None:
                self._record("before", result)
            return

    def _meanwhile(self, supervisor: Supervisor, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; it is looked after the processes meanwhile. None if a stop is asked for."""

        async def watched() -> T | None:
            task = asyncio.create_task(work)
            try:
                while not task.done() and not self._should_stop():
                    supervisor.check()
                    self._update_view()
                    await asyncio.wait([task], timeout=_TICK_S)
            finally:
                task.cancel()
                await asyncio.wait([task])
            return None if task.cancelled() else task.result()

        return asyncio.run(watched())

    async def _evaluate_on(self, replica: ReplicaRow) -> Evaluation:
        encoder, _ = wiring.build_encoder(self._config, wiring.base_model_dir(self._config, self._paths))
        keys = wiring.build_keys(self._config, self._paths)
        token = keys.token("inference", replica.url, replica.start)
        async with aiohttp.ClientSession() as session:
            return await evaluate(
                VllmClient(replica.url, session, token=token),
                wiring.build_task(self._config),
                encoder,
                num_problems=self._config.evaluation.num_problems,
                max_tokens=self._config.evaluation.max_tokens or self._config.rollout.max_tokens,
                num_samples=self._config.evaluation.num_samples_shown,
                timeout_s=self._config.rollout.request_timeout_s,
                temperature=self._config.evaluation.temperature,
                reward_timeout_s=self._config.rollout.reward_timeout_s,
            )

    def _measure_after(self, supervisor: Supervisor) -> None:
        """Held-out skill of the last checkpoint, converted, on a vLLM server of its own."""
        if self._measured("after"):
            return
        if not self._paths.final_model.exists():
            command = [sys.executable, "-m", "tools.convert", "to-hf", "--checkpoint", str(self._paths.checkpoints)]
            model_dir = wiring.start_model_dir(self._config, self._paths)
            command += ["--model", str(model_dir), "--out", str(self._paths.final_model)]
            command += ["--dtype", self._config.learner.publish_dtype]
            supervisor.start("convert", command)
            self._watch(supervisor, until=lambda: supervisor.has_finished("convert"))
        if self._should_stop():
            return
        result = self._meanwhile(supervisor, evaluate_folder(self._config, self._paths, self._paths.final_model))
        if result is not None:
            self._record("after", result)

    def _record(self, which: str, result: Evaluation) -> None:
        self._metrics.write("evaluation", which=which, **result.as_fields())
        self._update_view()


def choose_directory(config: Config) -> Config:
    """The run directory to use: an unfinished one with the same settings is resumed, a finished one is kept.

    Raises:
      ConfigError: an unfinished run with other settings is there.
    """
    paths = wiring.run_paths(config)
    base, number = paths.directory, 1
    directory = base
    while (directory / "summary.json").exists():
        number += 1
        directory = base.with_name(f"{base.name}-{number}")
    config = config.model_copy(update={"run": config.run.model_copy(update={"directory": str(directory)})})
    saved = directory / "config.toml"
    if saved.exists() and (before := load_config(saved)) != config:
        raise ConfigError(
            f"{directory} holds an unfinished run with other settings ({', '.join(_differences(before, config))}); "
            f"give the same settings to go on with it, or another place by --set run.directory=DIR"
        )
    return config


def _differences(before: Config, now: Config) -> list[str]:
    flat_before, flat_now = _flat(before.model_dump()), _flat(now.model_dump())
    return [
        f"{key}: {flat_before.get(key)!r} there, {flat_now.get(key)!r} now"
        for key in sorted(flat_before.keys() | flat_now.keys())
        if flat_before.get(key) != flat_now.get(key)
    ]


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_parts(config: Config) -> None:
    """Refuses what can be known to fail before anything is written or started: model folder, task, vLLM, port."""
    if config.model.path:
        wiring.build_encoder(config, Path(config.model.path).expanduser())
    wiring.build_task(config).close()
    detect_platform()
    check_plugin()
    claim_port(config.serving.host, config.serving.port)


def train(config_path: Path, overrides: list[str], *, profile_steps: int = 0) -> int:
    """Runs the job; returns the process's exit status."""
    config = choose_directory(load_config(config_path, overrides))
    paths = wiring.run_paths(config)
    check_parts(config)
    wiring.make_private_directory(paths)
    with at(paths.config):
        save_config(config, paths.config)
    stop = wiring.StopRequest().install()
    with LiveView(config, paths.directory) as view:
        complete = Job(config, paths, view, stop, profile_steps=profile_steps).run()
    if not complete:
        print(f"stopped; the same command goes on from the last checkpoint in {paths.directory}")
        return _INTERRUPTED
    summary = write_summary(paths.directory)
    write_report(paths.directory)
    print(headline(summary, paths.directory))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wiring.config_arguments(parser)
    wiring.profile_argument(parser)
    arguments = parser.parse_args()
    with wiring.clear_errors():
        try:
            status = train(arguments.config, arguments.overrides, profile_steps=arguments.profile)
        except KeyboardInterrupt:
            print("ended at once; the same command goes on from the last checkpoint")
            status = _INTERRUPTED
    raise SystemExit(status)


if __name__ == "__main__":
    main()

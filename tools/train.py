"""Runs a whole training job on one machine: fleet, rollout worker and learner as processes of their own.

    python -m tools.train --config configs/demo.toml [--set rollout.max_staleness=0] [--profile N]

An unfinished run directory is taken up where it stopped; a finished one is left alone and a new one is begun.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from configs.load import ConfigError, load_config, save_config
from configs.schema import Config
from serving_bridge.evaluation import Evaluation, evaluate
from serving_bridge.registry import ReplicaRow
from serving_bridge.replica import check_plugin, claim_port, detect_platform
from serving_bridge.supervisor import Supervisor
from serving_bridge.telemetry import MetricsLog, MetricsTail, read_metrics
from serving_bridge.vllm_client import VllmClient
from tools import wiring
from tools.evaluate import evaluate_folder
from tools.report import headline, write_report, write_summary
from tools.view import LiveView
from tools.wiring import RunPaths

_TICK_S = 0.25
_LEARNER_RESTARTS = 2
_ROLLOUT_RESTARTS = 5


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

    def run(self) -> bool:
        """Returns whether the run is complete (and not stopped in between)."""
        config, paths = self._config, self._paths
        wiring.base_model_dir(config, paths)  # made here, before the processes that need it start
        with Supervisor(paths.logs, self._metrics.write) as supervisor:
            self._phase("starting")
            supervisor.start("serve", self._command("tools.serve"), grace_s=config.serving.drain_timeout_s + 20)
            if config.warm_start and not paths.start_model.exists():
                self._phase("supervised start")
                supervisor.start("warm_start", self._command("tools.learner", "--warm-start"))
                self._watch(supervisor, until=lambda: supervisor.has_finished("warm_start"))
            learner = self._command("tools.learner", "--profile", str(self._profile_steps))
            supervisor.start("learner", learner, restarts=_LEARNER_RESTARTS, grace_s=60)
            self._measure_before(supervisor)
            self._phase("training")
            supervisor.start("rollout", self._command("tools.rollout"), restarts=_ROLLOUT_RESTARTS)
            self._watch(supervisor, until=lambda: supervisor.has_finished("learner"))
            if self._should_stop():
                return False
            self._phase("evaluating")
            for name in ("rollout", "serve"):
                supervisor.ask_to_stop(name)
            self._measure_after(supervisor)
        self._phase("finished")
        return True

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
        self._watch(supervisor, until=lambda: bool(registry.ready()) or supervisor.has_finished("learner"))
        ready = registry.ready()
        if ready and not self._measured("before"):
            self._record("before", asyncio.run(self._evaluate_on(ready[0])))

    async def _evaluate_on(self, replica: ReplicaRow) -> Evaluation:
        encoder, _ = wiring.build_encoder(self._config, wiring.base_model_dir(self._config, self._paths))
        async with aiohttp.ClientSession() as session:
            return await evaluate(
                VllmClient(replica.url, session),
                wiring.build_task(self._config),
                encoder,
                num_problems=self._config.evaluation.num_problems,
                max_tokens=self._config.evaluation.max_tokens or self._config.rollout.max_tokens,
                num_samples=self._config.evaluation.num_samples_shown,
                timeout_s=self._config.rollout.request_timeout_s,
                temperature=self._config.evaluation.temperature,
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
        self._record("after", asyncio.run(evaluate_folder(self._config, self._paths, self._paths.final_model)))

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
    started = time.monotonic()
    config = choose_directory(load_config(config_path, overrides))
    paths = wiring.run_paths(config)
    check_parts(config)
    paths.logs.mkdir(parents=True, exist_ok=True)
    save_config(config, paths.config)
    stop = wiring.StopRequest().install()
    with LiveView(config, paths.directory) as view:
        complete = Job(config, paths, view, stop, profile_steps=profile_steps).run()
    if not complete:
        print(f"stopped; the same command goes on from the last checkpoint in {paths.directory}")
        return 130
    summary = write_summary(paths.directory, wall_s=time.monotonic() - started)
    write_report(paths.directory)
    print(headline(summary, paths.directory))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wiring.config_arguments(parser)
    wiring.profile_argument(parser)
    arguments = parser.parse_args()
    with wiring.clear_errors():
        status = train(arguments.config, arguments.overrides, profile_steps=arguments.profile)
    raise SystemExit(status)


if __name__ == "__main__":
    main()

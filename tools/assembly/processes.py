"""The processes of a job on one machine: their commands, and how often each is started again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema import Config
from serving_bridge.processes import python_module
from serving_bridge.vllm import claim_port
from tools.assembly.base_model import base_model_path
from tools.assembly.paths import RunPaths

#: beyond draining, what a fleet takes to end
_SERVE_GRACE_S = 40.0
_LEARNER_GRACE_S = 60.0
_LOOPBACK = "127.0.0.1"

Command = list[str]


@dataclass(frozen=True)
class Planned:
    """Processes that live and die together.

    Attributes:
      commands: one for each of them.
      restarts: how often they are started again within an hour.
      grace_s: time that they get to end when they are asked to.
      end_s: time that the others get to notice that one has failed.
    """

    name: str
    commands: list[Command]
    restarts: int
    grace_s: float = 30.0
    end_s: float = 60.0


def planned(config: Config, paths: RunPaths, *, profile_steps: int = 0) -> Iterator[Planned]:
    """What a job starts, in order; "warm_start" only where its model is not there yet."""
    drain_s = config.serving.drain_timeout_s
    yield Planned("serve", [_command(paths, "tools.serve")], 3, grace_s=drain_s + _SERVE_GRACE_S)
    if config.warm_start and not paths.start_model.exists():
        yield Planned("warm_start", [_command(paths, "tools.learner", "--warm-start")], 1)
    yield Planned(
        "learner",
        learner_commands(config, paths, profile_steps=profile_steps, coordinator=config.learner.hosts.coordinator),
        3,
        grace_s=_LEARNER_GRACE_S,
        end_s=config.learner.hosts.heartbeat_timeout_s + _LEARNER_GRACE_S,
    )
    yield Planned("rollout", [_command(paths, "tools.rollout")], 5)
    yield Planned("convert", [_convert(config, paths)], 0)


def learner_commands(config: Config, paths: RunPaths, *, profile_steps: int, coordinator: str = "") -> list[Command]:
    """One command for each of the learner's hosts."""
    count = config.learner.hosts.count
    command = _command(paths, "tools.learner", "--profile", str(profile_steps))
    if count == 1:
        return [command]
    told = ["--set", f"learner.hosts.coordinator={coordinator}"] if coordinator else []
    return [[*command, *told, "--set", f"learner.hosts.index={index}"] for index in range(count)]


def fresh_coordinator(config: Config) -> str:
    """Where the learner's hosts meet; a port of its own for each start: that before may be held by what is ending."""
    hosts = config.learner.hosts
    return hosts.coordinator or (f"{_LOOPBACK}:{claim_port(_LOOPBACK, 0)}" if hosts.count > 1 else "")


def _command(paths: RunPaths, module: str, *arguments: str) -> Command:
    return [*python_module(module), "--config", str(paths.config), *arguments]


def _convert(config: Config, paths: RunPaths) -> Command:
    command = [*python_module("tools.convert"), "to-hf", "--checkpoint", str(paths.checkpoints)]
    model_dir = paths.start_model if config.warm_start else base_model_path(config, paths)
    command += ["--model", str(model_dir), "--out", str(paths.final_model)]
    family = ["--family", config.model.family] if config.model.family else []
    return [*command, "--dtype", config.learner.publish_dtype, *family]

"""The processes of a job: their commands, and how often each is started again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

from configs.launch import RoleName
from configs.schema import Config
from serving_bridge.processes import python_module
from serving_bridge.vllm import claim_port
from tools.assembly.base_model import base_model_path
from tools.assembly.paths import RunPaths
from tools.assembly.placement import Command, Here, Placement, hosts_of

#: beyond draining, what a fleet takes to end
_SERVE_GRACE_S = 40.0
_GRACE_S, _LEARNER_GRACE_S = 30.0, 60.0
#: of a role with a program of its own
_OWN_RESTARTS = 3


@dataclass(frozen=True)
class Planned:
    """Processes that live and die together.

    Attributes:
      name: of these processes; their logs have it.
      role: whose processes they are; several `Planned` may be of one role.
      commands: one for each of them.
      restarts: how often they are started again within an hour.
      grace_s: time that they get to end when they are asked to.
      end_s: time that the others get to notice that one has failed.
      stop_signal: asks them to end.
    """

    name: str
    role: str
    commands: list[Command]
    restarts: int
    grace_s: float = _GRACE_S
    end_s: float = 60.0
    stop_signal: int = signal.SIGTERM


def planned(
    config: Config, paths: RunPaths, *, profile_steps: int = 0, place: Placement | None = None
) -> Iterator[Planned]:
    """What a job starts, in order; "warm_start" only where its model is not there yet."""
    place = place or Here(config)
    yield from _own_programs(config, place, "database")
    drain_s = config.serving.drain_timeout_s + _SERVE_GRACE_S
    for host, name in _names(config, "fleet", "serve"):
        command = _command(paths, "tools.serve", *_fleet_settings(config, place, host))
        put = place.put("fleet", host, command, grace_s=drain_s)
        yield Planned(name, "fleet", [put], 3, grace_s=drain_s, stop_signal=place.stop_signal)
    yield from _own_programs(config, place, "serving")
    if config.trains_first and not paths.start_model.exists():
        yield Planned(
            "warm_start",
            "learner",
            warm_start_commands(config, paths, coordinator=config.learner.hosts.coordinator, place=place),
            1,
            end_s=config.learner.hosts.heartbeat_timeout_s + _LEARNER_GRACE_S,
            stop_signal=place.stop_signal,
        )
    coordinator = config.learner.hosts.coordinator
    yield Planned(
        "learner",
        "learner",
        learner_commands(config, paths, profile_steps=profile_steps, coordinator=coordinator, place=place),
        3,
        grace_s=_LEARNER_GRACE_S,
        end_s=config.learner.hosts.heartbeat_timeout_s + _LEARNER_GRACE_S,
        stop_signal=place.stop_signal,
    )
    for host, name in _names(config, "rollout", "rollout"):
        told = ["--name", f"worker-{host}"] if hosts_of(config, "rollout") > 1 else []
        command = place.put("rollout", host, _command(paths, "tools.rollout", *told), grace_s=_GRACE_S)
        yield Planned(name, "rollout", [command], 5, stop_signal=place.stop_signal)
    convert = place.put("learner", 0, _convert(config, paths), grace_s=_GRACE_S)
    yield Planned("convert", "learner", [convert], 0, stop_signal=place.stop_signal)
    if place.is_elsewhere:
        command = _command(paths, "tools.launch.last_evaluation", *_fleet_address(place))
        command = place.put("fleet", 0, command, grace_s=_GRACE_S)
        yield Planned("evaluate", "fleet", [command], 2, stop_signal=place.stop_signal)


def learner_commands(
    config: Config, paths: RunPaths, *, profile_steps: int, coordinator: str = "", place: Placement | None = None
) -> list[Command]:
    """One command for each of the learner's hosts."""
    command = _command(paths, "tools.learner", "--profile", str(profile_steps))
    return _on_each_host(config, command, coordinator, place or Here(config), grace_s=_LEARNER_GRACE_S)


def warm_start_commands(
    config: Config, paths: RunPaths, *, coordinator: str = "", place: Placement | None = None
) -> list[Command]:
    """One command for each host of the supervised stage: all of them with [supervised], the first with [warm_start]."""
    place, command = place or Here(config), _command(paths, "tools.learner", "--warm-start")
    if config.supervised is None:
        return [place.put("learner", 0, command, grace_s=_GRACE_S)]
    return _on_each_host(config, command, coordinator, place, grace_s=_GRACE_S)


def _on_each_host(
    config: Config, command: Command, coordinator: str, place: Placement, *, grace_s: float
) -> list[Command]:
    count = config.learner.hosts.count
    if count == 1:
        return [place.put("learner", 0, command, grace_s=grace_s)]
    told = ["--set", f"learner.hosts.coordinator={coordinator}"] if coordinator else []
    commands = [[*command, *told, "--set", f"learner.hosts.index={index}"] for index in range(count)]
    return [place.put("learner", host, one, grace_s=grace_s) for host, one in enumerate(commands)]


def fresh_coordinator(config: Config, place: Placement | None = None) -> str:
    """Where the learner's hosts meet; a port of its own for each start: that before may be held by what is ending."""
    hosts, place = config.learner.hosts, place or Here(config)
    return hosts.coordinator or (f"{place.address}:{claim_port(place.address, 0)}" if hosts.count > 1 else "")


def _names(config: Config, role: RoleName, name: str) -> list[tuple[int, str]]:
    """(number of the host, name of the process) for each process of a role that has one on each of its hosts."""
    count = hosts_of(config, role)
    return [(host, name if count == 1 else f"{name}-{host}") for host in range(count)]


def _fleet_settings(config: Config, place: Placement, host: int) -> list[str]:
    """Of a host of the role: the first hosts of replicas lead fleets, the others join them."""
    fleet, number = divmod(host, config.serving.hosts_per_replica)
    several = place.is_elsewhere or hosts_of(config, "fleet") > 1
    named = ["--name", f"fleet-{fleet}"] if several else []
    return [*named, *(["--further-host", str(number)] if number else []), *_fleet_address(place)]


def _fleet_address(place: Placement) -> list[str]:
    return ["--set", "serving.host={address}"] if place.is_elsewhere else []


def _own_programs(config: Config, place: Placement, role: RoleName) -> Iterator[Planned]:
    settings = config.launch.roles().get(role)
    if settings is None:
        return
    for host, name in _names(config, role, role):
        command = [part.replace("{index}", str(host)) for part in settings.command]
        put = place.put(role, host, command, grace_s=_GRACE_S)
        yield Planned(name, role, [put], _OWN_RESTARTS, stop_signal=place.stop_signal)


def _command(paths: RunPaths, module: str, *arguments: str) -> Command:
    return [*python_module(module), "--config", str(paths.config), *arguments]


def _convert(config: Config, paths: RunPaths) -> Command:
    command = [*python_module("tools.convert"), "to-hf", "--checkpoint", str(paths.checkpoints)]
    model_dir = paths.start_model if config.trains_first else base_model_path(config, paths)
    command += ["--model", str(model_dir), "--out", str(paths.final_model)]
    family = ["--family", config.model.family] if config.model.family else []
    return [*command, "--dtype", config.learner.publish_dtype, *family]

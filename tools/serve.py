"""Runs a serving fleet: vLLM replicas that follow the run's weight store, or the aliases of a registry.

    python -m tools.serve --config runs/demo/config.toml [--name NAME]
    python -m tools.serve --config runs/demo/config.toml --name users --set serving.follow=aliases

Another fleet, on this host or another, may join at any time under a name of its own, with replicas of its own, and
leave again: rollout workers notice within a second or two. `python -m tools.fleet` gives orders to one that runs.
Where serving.hosts_per_replica is above 1, `--further-host 1` (and 2, ...) runs on each further host of a replica.
SIGTERM or Ctrl-C lets answers in flight finish, at most serving.drain_timeout_s; a second one ends everything at once.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

from configs.errors import ConfigError
from configs.schema import Config
from learner_jax.runtime import Waits
from serving_bridge.fleet import AliasFollower, Fleet, FurtherHost, MeetingPoint, served_by, sole_controller
from serving_bridge.registry import Registry
from serving_bridge.telemetry import reported_waits
from tools.assembly import (
    RunPaths,
    StopRequest,
    base_model_dir,
    build_arm_replicas,
    build_keys,
    build_registry,
    build_serving_registry,
    build_store,
    clear_errors,
    config_arguments,
    metrics_log,
    name_argument,
    preflight,
    read_arguments,
    watched,
)
from tools.command_line import command_parser


def main() -> None:
    parser = command_parser("serve", __doc__)
    config_arguments(parser)
    name_argument(parser, default=socket.gethostname(), help="of this fleet; unique in the run")
    parser.add_argument(
        "--further-host", type=int, default=0, metavar="N", help="join the fleet NAME as this host of its replica"
    )
    with clear_errors():
        arguments, config, paths = read_arguments(parser, joins=True)
        if not 0 <= arguments.further_host < config.serving.hosts_per_replica:
            raise ConfigError(
                f"--further-host is {arguments.further_host}, expected a number below serving.hosts_per_replica "
                f"({config.serving.hosts_per_replica})"
            )
        preflight("serve", config, paths)  # what can't be served is refused before vLLM is started
        aliases = build_serving_registry(config) if config.serving.follow == "aliases" else None
        try:
            _serve(config, paths, arguments.name, arguments.further_host, aliases)
        finally:
            if aliases is not None:
                aliases.close()


def _serve(config: Config, paths: RunPaths, name: str, further_host: int, aliases: Registry | None) -> None:
    """One fleet, or one further host of its replica."""
    model_dir, waits = base_model_dir(config, paths), Waits()
    registry = build_registry(paths) if aliases is None else build_arm_replicas(config, aliases)
    store = build_store(config, paths) if aliases is None else aliases.weights.store(config.registry.namespace)
    events = metrics_log(config, paths, "fleet")
    process = f"fleet-{name}" + (f".{further_host}" if further_host else "")
    log = watched(events, config, paths, "fleet", process).write
    should_stop = StopRequest().install()
    if further_host:
        replica = f"{name}-0"
        FurtherHost(
            config.serving,
            MeetingPoint(registry.folder, replica),
            number=further_host,
            model_dir=model_dir,
            store=store,
            log_path=paths.logs / f"{replica}.{further_host}.log",
            log=log,
            model_family=config.model.family,
        ).run(should_stop)
        return
    fleet = Fleet(
        config.serving,
        model_dir=model_dir,
        store=store,
        registry=registry,
        log_dir=paths.logs,
        keep_versions=config.store.keep_versions,
        log=log,
        should_stop=should_stop,
        name=name,
        keys=build_keys(config, paths, registry),
        model_family=config.model.family,
        follower=None if aliases is None else _alias_follower(config, aliases, model_dir, log),
        waits=waits,
    )
    with sole_controller(registry.folder, name), reported_waits(waits, log, clock=time.monotonic):
        try:
            asyncio.run(fleet.run())
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def _alias_follower(config: Config, aliases: Registry, model_dir: Path, log: Callable[..., None]) -> AliasFollower:
    """Raises `RegistryError` if there is nothing that the fleet can serve."""
    served = served_by(model_dir, config.serving.dtype, family=config.model.family)
    follower = AliasFollower(aliases, config.registry.namespace, served, log=log, run_blocking=asyncio.to_thread)
    follower.require_stable()
    return follower


if __name__ == "__main__":
    main()

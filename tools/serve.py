"""Runs a serving fleet: vLLM replicas that follow the run's weight store.

    python -m tools.serve --config runs/demo/config.toml [--name NAME]

Another fleet, on this host or another, may join at any time under a name of its own, with replicas of its own, and
leave again: rollout workers notice within a second or two. `python -m tools.fleet` gives orders to one that runs.
Where serving.hosts_per_replica is above 1, `--further-host 1` (and 2, ...) runs on each further host of a replica.
SIGTERM or Ctrl-C lets answers in flight finish, at most serving.drain_timeout_s; a second one ends everything at once.
"""

from __future__ import annotations

import asyncio
import socket
import time

from configs.errors import ConfigError
from learner_jax.runtime import Waits
from serving_bridge.fleet import Fleet, FurtherHost, MeetingPoint, sole_controller
from serving_bridge.telemetry import reported_waits
from tools.assembly import (
    StopRequest,
    base_model_dir,
    build_keys,
    build_registry,
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
        model_dir = base_model_dir(config, paths)
        waits, registry = Waits(), build_registry(paths)
        events = metrics_log(config, paths, "fleet")
        process = f"fleet-{arguments.name}" + (f".{arguments.further_host}" if arguments.further_host else "")
        log = watched(events, config, paths, "fleet", process).write
        store, should_stop = build_store(config, paths), StopRequest().install()
        if arguments.further_host:
            replica = f"{arguments.name}-0"
            FurtherHost(
                config.serving,
                MeetingPoint(registry.folder, replica),
                number=arguments.further_host,
                model_dir=model_dir,
                store=store,
                log_path=paths.logs / f"{replica}.{arguments.further_host}.log",
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
            name=arguments.name,
            keys=build_keys(config, paths),
            model_family=config.model.family,
            waits=waits,
        )
        with sole_controller(registry.folder, arguments.name), reported_waits(waits, log, clock=time.monotonic):
            try:
                asyncio.run(fleet.run())
            except KeyboardInterrupt:
                raise SystemExit(130) from None


if __name__ == "__main__":
    main()

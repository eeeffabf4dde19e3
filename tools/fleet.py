"""Shows and steers the fleets of a run that goes on.

    python -m tools.fleet runs/demo status
    python -m tools.fleet runs/demo scale 3 [--fleet NAME]
    python -m tools.fleet runs/demo restart [--fleet NAME]
    python -m tools.fleet runs/demo status --aliases              (fleets that follow the registry's aliases)

`scale` sets the number of replicas; `restart` drains and starts them again one by one, with verified weights before
each serves again, and never leaves fewer than serving.min_healthy. Both return when the controller has taken note;
--wait SECONDS waits until it is done.
"""

from __future__ import annotations

import time
import uuid
from contextlib import closing
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import Waits, WeirError
from serving_bridge.fleet import FleetStatus, OrderBook, known_fleets
from serving_bridge.routing import ReplicaRegistry
from tools.assembly import (
    build_arm_replicas,
    build_registry,
    build_serving_registry,
    clear_errors,
    run_paths,
    saved_config,
)
from tools.command_line import command_parser
from tools.reporting import terminal

_ANSWER_S = 10.0
_POLL_S = 0.1


class FleetToolError(WeirError, RuntimeError):
    """An order was not carried out; says why."""


def status_table(registry: ReplicaRegistry, now_s: float) -> Table:
    """All replicas of all fleets: what each does, and why."""
    table = Table(
        "replica", "fleet", "state", "version", "arm", "answered", "failed", "heard of", "address", "why", box=None
    )
    totals = registry.all_request_totals()
    for row in registry.replicas():
        succeeded, failed = totals.get(row.name, (0, 0))
        table.add_row(
            escape(row.name),
            escape(row.fleet) or "-",
            terminal.coloured(registry.state(row)),
            str(row.version) if row.version >= 0 else "-",
            row.arm or "-",
            str(succeeded),
            str(failed),
            f"{max(0.0, now_s - row.heartbeat_s):.0f} s ago",
            escape(row.url) or "-",
            escape(row.reason) or "-",
        )
    return table


def fleet_line(status: FleetStatus, now_s: float) -> str:
    """One line on a fleet's controller."""
    silent_s = max(0.0, now_s - status.heartbeat_s)
    text = f"fleet {status.fleet}: {status.wanted} replicas wanted, heard of {silent_s:.0f} s ago"
    return text + (f"; to do: {status.doing}" if status.doing else "")


def choose_fleet(folder: Path, name: str) -> str:
    """The fleet that is meant; without a name the only one. Raises `FleetToolError` if there is none or several."""
    known = known_fleets(folder)
    if name in known:
        return name
    if not name and len(known) == 1:
        return known[0]
    raise FleetToolError(
        f"expected --fleet to name one of {known}, got {name!r}" if known else f"no fleet runs: {folder} knows of none"
    )


def give_order(book: OrderBook, waits: Waits, *, replicas: int | None, restart: bool, wait_s: float) -> FleetStatus:
    """Orders, and waits until the controller has taken note and then, at most `wait_s`, until it is done.

    Raises:
      FleetToolError: no answer in time, or the controller refuses.
    """
    order_id = uuid.uuid4().hex
    book.order(order_id, replicas=replicas, restart=restart)
    with waits.waiting(
        "the order to be taken note of", on="fleet controller", limit_s=_ANSWER_S, error=FleetToolError
    ) as wait:
        wait.hint("does it run? (tools.serve)")
        while (status := book.status()) is None or status.order_id != order_id:
            wait.sleep(_POLL_S)
    if status.refused:
        raise FleetToolError(f"fleet {status.fleet} refuses: {status.refused}")
    if not wait_s:
        return status
    with waits.waiting(
        "the order to be carried out", on="fleet controller", limit_s=wait_s, setting="--wait", error=FleetToolError
    ) as wait:
        while (status := book.status()) is None or status.doing:
            wait.hint(status.doing if status is not None else "the controller ended")
            wait.sleep(_POLL_S)
    return status


def _aliases_replicas(config: Config) -> ReplicaRegistry:
    with closing(build_serving_registry(config)) as aliases:
        return build_arm_replicas(config, aliases)


def main() -> None:
    parser = command_parser("fleet", __doc__)
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    orders = parser.add_subparsers(dest="order", required=True)
    show = orders.add_parser("status", help="show all replicas")
    scale, restart = orders.add_parser("scale", help="set the number of replicas"), orders.add_parser("restart")
    scale.add_argument("replicas", type=int)
    for order in (show, scale, restart):
        order.add_argument("--aliases", action="store_true", help="of fleets that follow the aliases of registry.path")
    for order in (scale, restart):
        order.add_argument("--fleet", default="", help="which fleet, where there are several")
        order.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait until it is done")
    arguments = parser.parse_args()
    console = terminal.console()
    with clear_errors():
        config = load_config(saved_config(arguments.run))
        registry = _aliases_replicas(config) if arguments.aliases else build_registry(run_paths(config))
        if arguments.order == "status":
            for name in known_fleets(registry.folder):
                if (status := OrderBook(registry.folder, name).status()) is not None:
                    console.print(fleet_line(status, time.time()), highlight=False, markup=False, soft_wrap=True)
            console.print(status_table(registry, time.time()))
            return
        book = OrderBook(registry.folder, choose_fleet(registry.folder, arguments.fleet))
        replicas = arguments.replicas if arguments.order == "scale" else None
        status = give_order(
            book, Waits(), replicas=replicas, restart=arguments.order == "restart", wait_s=arguments.wait
        )
        console.print(fleet_line(status, time.time()), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()

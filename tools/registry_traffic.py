"""What `tools.registry` shows of a namespace's traffic split, and how it sets one."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner_jax.contracts import quoted
from serving_bridge.registry import Placement, Registry, RegistryError, TrafficChange, TrafficRecord, TrafficSplit
from tools.registry_shown import when
from tools.reporting import terminal


def show_traffic(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    """The split as it stands, the entries behind it, and the newest changes."""
    placement = registry.placement(arguments.namespace)
    records = registry.index.aliases.traffic_history(arguments.namespace, limit=arguments.limit)
    if arguments.json:
        terminal.print_json(_fields(placement, records))
        return 0
    console.print(escape(placement.traffic.told()), soft_wrap=True)
    for alias in ("stable", "canary"):
        placed = placement.aliases.get(alias)
        console.print(f"{alias}: {'no entry' if placed is None else f'entry {placed.number}, {placed.stage}'}")
    if records:
        table = Table("change", "when", "canary", "shadow", "tenants", "move", "by", "reason", box=None)
        for one in records:
            table.add_row(
                str(one.split.revision),
                when(one.created_s),
                f"{one.split.canary_share:.2%}",
                f"{one.split.shadow_share:.2%}",
                escape(one.split.named()),
                "-" if one.move is None else str(one.move),
                escape(one.actor),
                escape(one.reason),
            )
        console.print(table)
    return 0


def set_traffic(registry: Registry, arguments: argparse.Namespace, console: Console, *, holder: str) -> int:
    """Sets the split alone, under a lease of its own."""
    change = TrafficChange(
        arguments.canary, arguments.shadow, tuple(arguments.tenant), arguments.tenant_share, arguments.within
    )
    with registry.lease(arguments.namespace, holder, take_over=arguments.take_over) as lease:
        split = registry.index.aliases.set_traffic(lease, change, actor=arguments.actor, reason=arguments.reason)
    console.print(f"change {split.revision} of {escape(arguments.namespace)}: {escape(split.told())}", soft_wrap=True)
    return 0


def add_traffic_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `traffic` and `split` to the parser of `tools.registry`."""
    one = command("traffic", "the traffic split between stable and canary, and its changes", prints=True)
    one.add_argument("--limit", type=int, default=20, help="how many changes (default: 20)")
    one = command("split", "set the traffic split between stable and canary", acts=True)
    one.add_argument("--canary", type=share, required=True, metavar="SHARE", help="of the conversations, e.g. 5%% or 0")
    one.add_argument("--shadow", type=share, default=0.0, metavar="SHARE", help="of stable's requests, copied")
    one.add_argument("--tenant", action="append", default=[], help="whole, and nobody else (repeatable)")
    one.add_argument("--tenant-share", type=share, default=0.0, metavar="SHARE", help="of all tenants, likewise")
    one.add_argument("--within", type=share, default=1.0, metavar="SHARE", help="of these tenants' conversations")
    one.add_argument("--reason", required=True)
    one.add_argument("--take-over", action="store_true", help="from whoever holds the aliases, e.g. a controller")


def share(text: str) -> float:
    """`5%` or `0.05`, as a share from 0 to 1.

    Raises:
      argparse.ArgumentTypeError: it is neither.
    """
    number = text.removesuffix("%")
    try:
        found = float(number) / (100 if number != text else 1)
        TrafficChange(found)
    except (ValueError, RegistryError):
        raise argparse.ArgumentTypeError(f"{quoted(text, 40)}: expected a share such as 5% or 0.05") from None
    return found


def _fields(placement: Placement, records: list[TrafficRecord]) -> dict[str, object]:
    return {
        "traffic": _split_fields(placement.traffic),
        "aliases": {alias: placed.number for alias, placed in placement.aliases.items()},
        "changes": [
            _split_fields(one.split)
            | {"move": one.move, "token": one.token, "actor": one.actor, "reason": one.reason, "at_s": one.created_s}
            for one in records
        ],
    }


def _split_fields(split: TrafficSplit) -> dict[str, object]:
    return {
        "canary_share": split.canary_share,
        "shadow_share": split.shadow_share,
        "tenants": list(split.tenants),
        "tenant_share": split.tenant_share,
        "within": split.within,
        "revision": split.revision,
    }

"""How `tools.registry` shows entries, and what differs between two."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from learner_jax.contracts import quoted
from serving_bridge.registry import Standing

#: Columns of `diff`: attribute of an entry -> heading.
_COMPARED = ("parent", "content", "shape", "tokenizer", "num_parameters", "dtype", "consent", "note", "actor")


def differences(old: Standing, new: Standing) -> dict[str, tuple[Any, Any]]:
    """What is not the same in two entries: name -> (old, new)."""
    found: dict[str, tuple[Any, Any]] = {"stage": (old.stage, new.stage)}
    found |= {name: (getattr(old.entry, name), getattr(new.entry, name)) for name in _COMPARED}
    for name in ("kind", "run", "version", "step", "code"):
        found[f"origin {name}"] = (getattr(old.entry.origin, name), getattr(new.entry.origin, name))
    files = [{file.name: file.sha256 for file in one.entry.files} for one in (old, new)]
    tables = {"file": files, "version of": [old.entry.versions, new.entry.versions]}
    for what, (before, after) in tables.items():
        found |= {f"{what} {name}": (before.get(name), after.get(name)) for name in sorted({*before, *after})}
    return {name: (before, after) for name, (before, after) in found.items() if before != after}


def entry_table(standings: list[Standing]) -> Table:
    """A row for each entry."""
    table = Table(
        "entry", "stage", "aliases", "parent", "made by", "step", "content", "weights", "registered", box=None
    )
    for standing in standings:
        entry = standing.entry
        table.add_row(
            escape(entry.id),
            standing.stage,
            escape(quoted(", ".join(standing.aliases), 200)),
            "-" if entry.parent is None else str(entry.parent),
            escape(quoted(entry.origin.run, 40)),
            str(entry.origin.step),
            entry.content[:12],
            "kept" if standing.has_weights else "removed",
            when(entry.created_s),
        )
    return table


def entry_fields(standing: Standing) -> dict[str, Any]:
    """An entry and where it stands, for JSON."""
    more = {"stage": standing.stage, "aliases": list(standing.aliases), "has_weights": standing.has_weights}
    fields: dict[str, Any] = msgspec.to_builtins(standing.entry)
    return fields | more


def when(seconds: float) -> str:
    """Seconds since the epoch as local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

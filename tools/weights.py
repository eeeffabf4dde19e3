"""Looks into a weight store: the policy versions that a run published and what replicas make of them.

python -m tools.weights list     runs/demo/weights
python -m tools.weights show     runs/demo/weights 12
python -m tools.weights diff     runs/demo/weights 11 12      (changed fraction of each tensor)
python -m tools.weights verify   runs/demo/weights [12 ...]   (hashes and loads; exit status 1 if anything is damaged)
python -m tools.weights watch    runs/demo/weights [--once]   (which version each replica serves)
python -m tools.weights rollback runs/demo/weights 9          (publishes version 9 again, as the newest)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from serving_bridge.routing import ReplicaRegistry
from serving_bridge.storage import is_url
from serving_bridge.weights import StoreError, VersionRow, WeightStore
from serving_bridge.weights import inspection as weight_inspection
from tools.assembly import clear_errors
from tools.command_line import command_parser
from tools.reporting import terminal

_REFRESH_S = 0.5
_MIB = 2**20


def main() -> None:
    parser = command_parser("weights", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("list", "all versions"),
        ("show", "a version's manifest"),
        ("diff", "changed fraction of each tensor between two versions"),
        ("verify", "load versions as a fresh replica would, all of them by default"),
        ("watch", "which version each replica serves"),
        ("rollback", "publish an older version again, as the newest"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("store", help="the weight store, e.g. runs/demo/weights or s3://bucket/prefix")
        if name in ("show", "rollback"):
            command.add_argument("version", type=int)
        if name == "diff":
            command.add_argument("old", type=int)
            command.add_argument("new", type=int)
        if name == "verify":
            command.add_argument("versions", type=int, nargs="*", metavar="version")
        if name == "watch":
            command.add_argument("--once", action="store_true", help="print once instead of going on")
            command.add_argument(
                "--replicas", type=Path, metavar="DIR", help="list of the replicas, where the store is no folder"
            )
        else:
            command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    console = terminal.console()
    with clear_errors():
        store = open_store(arguments.store)
        match arguments.command:
            case "list":
                print_versions(store, console, as_json=arguments.json)
            case "show":
                print_manifest(store, arguments.version, console, as_json=arguments.json)
            case "diff":
                print_difference(store, arguments.old, arguments.new, console, as_json=arguments.json)
            case "verify":
                if not verify(store, arguments.versions, console, as_json=arguments.json):
                    sys.exit(1)
            case "watch":
                watch(store, replicas_of(store, arguments.replicas), console, once=arguments.once)
            case "rollback":
                rollback(store, arguments.version, console, as_json=arguments.json)


def open_store(root: str | Path) -> WeightStore:
    """A store that exists, under the name of the run that it belongs to.

    Raises:
      StoreError: there is no version.
      StorageError: object storage refuses, or does not answer.
    """
    store = WeightStore(root, run="")
    readable = [row.manifest for row in weight_inspection.rows(store) if row.manifest is not None]
    if not store.versions():
        raise StoreError(f"{root} holds no weight version; expected a store such as runs/demo/weights")
    return WeightStore(root, readable[-1].run if readable else "")


def print_versions(store: WeightStore, console: Console, *, as_json: bool) -> None:
    rows = weight_inspection.rows(store)
    if as_json:
        terminal.print_json([_row_fields(row) for row in rows])
        return
    table = Table("version", "step", "form", "base", "bytes", "of full", "changed", "content", box=None)
    for row in rows:
        if row.manifest is None:
            table.add_row(str(row.version), "", "[red]damaged[/]", "", "", "", "", escape(str(row.error)))
            continue
        manifest = row.manifest
        form = manifest.format + (" + anchor" if row.has_anchor else "")
        size = sum(weight_inspection.tensor_sizes(manifest))
        table.add_row(
            str(row.version),
            str(manifest.step),
            form,
            "" if manifest.base_version is None else str(manifest.base_version),
            f"{manifest.num_bytes:,}",
            f"1/{row.full_bytes / max(1, manifest.num_bytes):.1f}",
            "" if manifest.num_changed is None else f"{manifest.num_changed / size:.2%}",
            manifest.content_sha256[:12],
        )
    console.print(table)


def print_manifest(store: WeightStore, version: int, console: Console, *, as_json: bool) -> None:
    manifest = store.best_manifest(version)
    if as_json:
        terminal.print_json(msgspec.to_builtins(manifest))
        return
    base = f", an update of version {manifest.base_version}" if manifest.base_version is not None else ""
    console.print(f"version {version} of run {escape(manifest.run)}, step {manifest.step}: {manifest.format}{base}")
    console.print(f"content {manifest.content_sha256}, after version {manifest.parent}")
    for file in manifest.files:
        path = escape(store.shelf.place(version, file.name))
        console.print(f"file {path}: {file.num_bytes:,} bytes, sha256 {file.sha256}")
    golden = [len(prompt.tokens) for prompt in manifest.golden]
    console.print(f"{len(golden)} golden prompts of {golden} tokens")
    table = Table("tensor", "dtype", "shape", "xxh3_128", box=None)
    for entry in manifest.tensors:
        table.add_row(escape(entry.name), entry.dtype, str(entry.shape), entry.xxh3_128)
    console.print(table)


def print_difference(store: WeightStore, old: int, new: int, console: Console, *, as_json: bool) -> None:
    found = list(weight_inspection.differences(store, old, new))
    if as_json:
        terminal.print_json([msgspec.to_builtins(one) for one in found])
        return
    table = Table("tensor", "shape", "changed", "of it", box=None)
    for one in found:
        share = f"{one.num_changed / one.size:.3%}"
        table.add_row(escape(one.name), str(list(one.shape)), f"{one.num_changed:,}", share)
    changed, size = sum(one.num_changed for one in found), sum(one.size for one in found)
    table.add_row("[bold]all[/]", "", f"{changed:,}", f"{changed / size:.3%}")
    console.print(table)


def verify(store: WeightStore, versions: list[int], console: Console, *, as_json: bool) -> bool:
    """Says of each version whether it can be loaded; returns whether all can."""
    problems = {version: weight_inspection.problem(store, version) for version in versions or store.versions()}
    if as_json:
        terminal.print_json(problems)
    else:
        for version, found in problems.items():
            said = "intact" if found is None else f"[red]{escape(found)}[/]"
            console.print(f"version {version}: {said}", soft_wrap=True)
    return all(found is None for found in problems.values())


def replicas_of(store: WeightStore, given: Path | None) -> ReplicaRegistry:
    """The list of a store's replicas, beside it by default."""
    if given is None and is_url(store.address):
        raise StoreError(f"{store.address} has no list of replicas beside it: give --replicas runs/NAME/replicas")
    return ReplicaRegistry(given or store.root / "replicas")


def watch(store: WeightStore, registry: ReplicaRegistry, console: Console, *, once: bool) -> None:
    """Shows which version each replica serves, until interrupted."""
    if once:
        console.print(_replicas(store, registry))
        return
    try:
        with Live(_replicas(store, registry), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(max(_REFRESH_S, store.poll_s))
                live.update(_replicas(store, registry), refresh=True)
    except KeyboardInterrupt:
        return


def rollback(store: WeightStore, version: int, console: Console, *, as_json: bool) -> None:
    manifest = weight_inspection.republish(store, version)
    if as_json:
        terminal.print_json({"version": manifest.version, "from_version": version, "step": manifest.step})
    else:
        console.print(
            f"published the weights of version {version} (step {manifest.step}) as version {manifest.version}"
        )


def _replicas(store: WeightStore, registry: ReplicaRegistry) -> Table:
    versions = store.versions()
    newest = versions[-1] if versions else -1
    title = f"newest version {newest}"
    table = Table("replica", "state", "version", "behind", "step", "heard of", "address", box=None, title=title)
    now = time.time()
    for row in registry.replicas():
        behind = sum(version > row.version for version in versions) if row.version >= 0 else None
        table.add_row(
            escape(row.name),
            terminal.coloured(registry.state(row)),
            str(row.version) if row.version >= 0 else "-",
            "-" if behind is None else str(behind),
            str(row.step) if row.step >= 0 else "-",
            f"{now - row.heartbeat_s:.0f} s ago",
            escape(row.url),
        )
    return table


def _row_fields(row: VersionRow) -> dict[str, object]:
    manifest = row.manifest
    if manifest is None:
        return {"version": row.version, "error": row.error}
    return {
        "version": row.version,
        "step": manifest.step,
        "format": manifest.format,
        "base_version": manifest.base_version,
        "num_bytes": manifest.num_bytes,
        "full_bytes": row.full_bytes,
        "num_changed": manifest.num_changed,
        "content_sha256": manifest.content_sha256,
        "has_anchor": row.has_anchor,
    }


if __name__ == "__main__":
    main()

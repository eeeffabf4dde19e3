"""The registry of a deployment: candidates with their lineage, aliases such as `stable`, and the history of both.

python -m tools.registry add registry --run runs/demo              (the run's newest version becomes a candidate)
python -m tools.registry import registry --model DIR               (a model folder from outside)
python -m tools.registry list registry                             (the newest entries)
python -m tools.registry show registry 7                           (an entry by number or alias, and its history)
python -m tools.registry lineage registry stable                   (an entry and its ancestors)
python -m tools.registry diff registry stable 7                    (what differs between two entries)
python -m tools.registry stage registry 7 rejected --reason "..."  (an entry's next stage)
python -m tools.registry report registry 7 gate.json --verdict passed   (keep an evaluation's report with an entry)
python -m tools.registry move registry stable=7 previous=5 --reason "..."   (aliases move together, or not at all)
python -m tools.registry split registry --canary 5% --reason "..."  (which share of the conversations canary answers)
python -m tools.registry traffic registry                          (the traffic split, and who changed it)
python -m tools.registry history registry                          (who moved which alias when, and why)
python -m tools.registry sign registry 7 --key KEY.pem             (sign an entry; others verify it by the public key)
python -m tools.registry verify registry --trusted-key PUBLIC.pem  (hash every entry and file, and check signatures)
python -m tools.registry export registry stable --out DIR          (a model folder, with a model card)
python -m tools.registry retain registry --keep 20                 (remove weights that nobody needs)

The index is `index.sqlite` in the registry's folder, or the database of --database. Entries never change. Each tenant
may have entries and aliases of its own: --namespace.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner_jax.contracts import quoted
from serving_bridge.registry import (
    Registry,
    RegistryError,
    Retention,
    Standing,
    TrafficChange,
    model_card,
    read_trusted_keys,
)
from tools.assembly import clear_errors
from tools.command_line import command_parser, print_page, registry_arguments
from tools.registry_shown import differences, entry_fields, entry_table, when
from tools.registry_signing import add_sign_command, check_before, sign, sign_exported, sign_new
from tools.registry_traffic import add_traffic_commands, set_traffic, share, show_traffic
from tools.reporting import terminal

_TIMEOUT_S = 10.0
_MAX_REPORT_BYTES = 2**26


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    console = terminal.console()
    with clear_errors():
        if arguments.command not in ("add", "import") and not arguments.registry.is_dir() and not arguments.database:
            raise RegistryError(
                f"{arguments.registry} does not exist: expected the folder of a registry (`add` makes one)"
            )
        key = arguments.trusted_key
        trusted = None if key is None else read_trusted_keys(key)
        registry = Registry(
            arguments.registry,
            database=arguments.database,
            storage=getattr(arguments, "storage", ""),  # of `add` and `import`
            timeout_s=_TIMEOUT_S,
            trusted=trusted,
        )
        try:
            status = _COMMANDS[arguments.command](registry, arguments, console)
        finally:
            registry.close()
    if status:
        sys.exit(status)


def add(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    from tools.assembly import registered_run  # knows of runs, which the other commands do without

    check_before(arguments)
    parent = _parent(registry, arguments)
    if arguments.command == "import":
        folder = registered_run.of_folder(arguments.model, parent=parent, note=arguments.note)
        entry = registry.add(
            arguments.namespace, folder.tensors, folder.manifest, folder.files, folder.candidate, actor=arguments.actor
        )
    else:
        run = registered_run.of_run(
            arguments.run, arguments.version, parent=parent, consent=arguments.consent, note=arguments.note
        )
        entry = registry.register(
            arguments.namespace, run.store, run.version, run.files, run.candidate, actor=arguments.actor
        )
    console.print(f"{entry.id} is a candidate: {entry.num_parameters:,} parameters, content {entry.content[:12]}")
    sign_new(registry, arguments, entry.number, console)
    return 0


def list_(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    standings = registry.index.entries(
        arguments.namespace, limit=arguments.limit, before=arguments.before, stage=arguments.stage
    )
    if arguments.json:
        terminal.print_json([entry_fields(standing) for standing in standings])
    else:
        console.print(entry_table(standings))
    return 0


def show(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    standing = _standing(registry, arguments, arguments.entry)
    events = registry.index.events(standing.entry.namespace, standing.entry.number)
    if arguments.json:
        children = registry.index.children(standing.entry.namespace, standing.entry.number)
        more = {"events": [_event_fields(event) for event in events], "children": children}
        terminal.print_json(entry_fields(standing) | more)
    else:
        print_page(model_card(standing, events))
    return 0


def lineage(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    number = registry.index.aliases.resolve(arguments.namespace, arguments.entry)
    standings = registry.index.lineage(arguments.namespace, number, limit=arguments.limit)
    if arguments.json:
        terminal.print_json([entry_fields(standing) for standing in standings])
    else:
        console.print(entry_table(standings))
    return 0


def diff(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    old, new = (_standing(registry, arguments, name) for name in (arguments.old, arguments.new))
    found = differences(old, new)
    if arguments.json:
        terminal.print_json({name: {"old": a, "new": b} for name, (a, b) in found.items()})
        return 0
    table = Table("", escape(old.entry.id), escape(new.entry.id), box=None)
    for name, (before, after) in found.items():
        table.add_row(name, escape(quoted(before, 60)), escape(quoted(after, 60)))
    console.print(table)
    return 0


def stage(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    number = registry.index.aliases.resolve(arguments.namespace, arguments.entry)
    registry.index.set_stage(
        arguments.namespace,
        number,
        arguments.stage,
        actor=arguments.actor,
        reason=arguments.reason,
        unproven=arguments.unproven,
    )
    console.print(f"{arguments.namespace}/{number} is {arguments.stage}")
    return 0


def report(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    number = registry.index.aliases.resolve(arguments.namespace, arguments.entry)
    size = arguments.file.stat().st_size
    if size > _MAX_REPORT_BYTES:
        raise RegistryError(f"{arguments.file} has {size} bytes, expected at most {_MAX_REPORT_BYTES}")
    file = registry.add_report(
        arguments.namespace,
        number,
        arguments.file.name,
        arguments.file.read_bytes(),
        verdict=arguments.verdict,
        actor=arguments.actor,
        reason=arguments.reason,
    )
    console.print(f"{arguments.namespace}/{number} has report {escape(file.name)}, sha256 {file.sha256[:12]}")
    return 0


def move(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    namespace = arguments.namespace
    aliases = _assignments(registry, namespace, arguments.aliases)
    expected = _assignments(registry, namespace, arguments.expect)
    number = registry.move(
        namespace,
        aliases,
        holder=_holder(arguments),
        take_over=arguments.take_over,
        actor=arguments.actor,
        reason=arguments.reason,
        expected=expected,
        unproven=arguments.unproven,
        traffic=None if arguments.canary_share is None else TrafficChange(arguments.canary_share),
    )
    said = ", ".join(f"{alias} is {'gone' if to is None else to}" for alias, to in aliases.items())
    console.print(f"move {number} of {namespace}: {said}")
    return 0


def split(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    return set_traffic(registry, arguments, console, holder=_holder(arguments))


def history(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    moves = registry.index.aliases.history(arguments.namespace, alias=arguments.alias, limit=arguments.limit)
    if arguments.json:
        terminal.print_json([msgspec.to_builtins(one) for one in moves])
        return 0
    table = Table("move", "when", "alias", "from", "to", "by", "reason", box=None)
    for one in moves:
        ends = ("-" if number is None else str(number) for number in (one.old, one.new))
        table.add_row(
            str(one.move),
            when(one.created_s),
            escape(quoted(one.alias, 60)),
            *ends,
            *(escape(quoted(text, 1000)) for text in (one.actor, one.reason)),
        )
    console.print(table)
    return 0


def verify(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    problems = registry.index.check_chain(arguments.namespace)
    standings = [] if problems else registry.index.entries(arguments.namespace, limit=2**31 - 1)
    for standing in standings:
        problems += registry.problems(standing)
    if arguments.json:
        terminal.print_json({"entries": len(standings), "problems": problems})
    else:
        for problem in problems:
            console.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
        if not problems:
            console.print(f"{len(standings)} entries are as they were registered")
    return 1 if problems else 0


def export(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    standing = _standing(registry, arguments, arguments.entry)
    events = registry.index.events(standing.entry.namespace, standing.entry.number)
    registry.export(standing, arguments.out, readme=model_card(standing, events))
    sign_exported(arguments)
    console.print(f"{standing.entry.id} is in {escape(str(arguments.out))}", soft_wrap=True)
    return 0


def retain(registry: Registry, arguments: argparse.Namespace, console: Console) -> int:
    gone = registry.retain(arguments.namespace, Retention(arguments.keep), actor=arguments.actor)
    console.print(f"removed the weights of {len(gone)} entries: {', '.join(map(str, gone)) or 'none'}")
    return 0


_COMMANDS: Mapping[str, Callable[[Registry, argparse.Namespace, Console], int]] = {
    "add": add,
    "import": add,
    "list": list_,
    "show": show,
    "lineage": lineage,
    "diff": diff,
    "stage": stage,
    "report": report,
    "move": move,
    "split": split,
    "traffic": show_traffic,
    "history": history,
    "sign": sign,
    "verify": verify,
    "export": export,
    "retain": retain,
}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("registry", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, acts: bool = False, prints: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text)
        registry_arguments(one, acts=acts, prints=prints)
        return one

    _add_registering(command)
    _add_looking(command)
    _add_judging(command)
    _add_move(command("move", "move aliases, all of them or none", acts=True))
    add_traffic_commands(command)
    add_sign_command(command)
    _add_keeping(command)
    return parser


def _add_registering(command: Callable[..., argparse.ArgumentParser]) -> None:
    added = command("add", "register a version of a run", acts=True)
    added.add_argument("--run", type=Path, required=True, help="a run's directory, e.g. runs/demo")
    added.add_argument("--version", type=int, help="of its weight store (default: the newest)")
    added.add_argument("--consent", default="", help="sha256 of the list of consents of the data")
    imported = command("import", "register a model folder from outside", acts=True)
    imported.add_argument("--model", type=Path, required=True, help="a folder in Hugging Face's layout")
    for one in (added, imported):
        one.add_argument("--parent", metavar="ENTRY", help="entry that it was trained from (number or alias)")
        one.add_argument("--note", default="", help="a line for people")
        one.add_argument("--sign-with", type=Path, metavar="PEM", help="private key that signs the entry")
        one.add_argument(
            "--storage",
            default="",
            metavar="URL",
            help="of a new registry: keep weights and files at s3://bucket/prefix",
        )


def _add_looking(command: Callable[..., argparse.ArgumentParser]) -> None:
    one = command("list", "the newest entries", prints=True)
    one.add_argument("--limit", type=int, default=50, help="how many (default: 50)")
    one.add_argument("--before", type=int, metavar="NUMBER", help="older ones than this entry")
    one.add_argument("--stage", help="only entries of this stage")
    one = command("show", "an entry and what happened to it", prints=True)
    one.add_argument("entry", help="number or alias")
    one = command("lineage", "an entry and its ancestors", prints=True)
    one.add_argument("entry", help="number or alias")
    one.add_argument("--limit", type=int, default=100, help="how many (default: 100)")
    one = command("diff", "what differs between two entries", prints=True)
    one.add_argument("old")
    one.add_argument("new")
    one = command("history", "who moved which alias when, and why", prints=True)
    one.add_argument("--alias")
    one.add_argument("--limit", type=int, default=50, help="how many (default: 50)")


def _add_judging(command: Callable[..., argparse.ArgumentParser]) -> None:
    one = command("stage", "give an entry its next stage", acts=True)
    one.add_argument("entry", help="number or alias")
    one.add_argument("stage")
    one.add_argument("--reason", required=True)
    one.add_argument("--unproven", action="store_true", help="also to passed, without a gate's report")
    one = command("report", "keep an evaluation's report with an entry", acts=True)
    one.add_argument("entry", help="number or alias")
    one.add_argument("file", type=Path)
    one.add_argument("--verdict", required=True)
    one.add_argument("--reason", default="")


def _add_keeping(command: Callable[..., argparse.ArgumentParser]) -> None:
    command("verify", "hash every entry and file, and check signatures with --trusted-key", prints=True)
    one = command("export", "write an entry as a model folder")
    one.add_argument("entry", help="number or alias")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--sign-with", type=Path, metavar="PEM", help="private key that signs the folder, as model.sig")
    one = command("retain", "remove weights that nobody needs", acts=True)
    one.add_argument("--keep", type=int, required=True, help="newest entries whose weights stay")


def _add_move(one: argparse.ArgumentParser) -> None:
    one.add_argument("aliases", nargs="+", metavar="ALIAS=ENTRY", help="an empty ENTRY removes the alias")
    one.add_argument("--reason", required=True)
    one.add_argument(
        "--expect", action="append", default=[], metavar="ALIAS=ENTRY", help="move only if it is this now (repeatable)"
    )
    one.add_argument("--canary-share", type=share, metavar="SHARE", help="of the conversations from then on, e.g. 5%%")
    one.add_argument("--unproven", action="store_true", help="also entries that no evaluation gate has passed")
    one.add_argument("--take-over", action="store_true", help="from whoever holds the aliases, e.g. a controller")


def _parent(registry: Registry, arguments: argparse.Namespace) -> int | None:
    return None if arguments.parent is None else registry.index.aliases.resolve(arguments.namespace, arguments.parent)


def _standing(registry: Registry, arguments: argparse.Namespace, name: str) -> Standing:
    number = registry.index.aliases.resolve(arguments.namespace, name)
    return registry.index.standing(arguments.namespace, number)


def _assignments(registry: Registry, namespace: str, given: list[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for one in given:
        alias, separator, entry = one.partition("=")
        if not separator or alias in found:
            raise RegistryError(f"{quoted(one, 80)}: expected ALIAS=ENTRY, each alias once, e.g. stable=7")
        found[alias] = registry.index.aliases.resolve(namespace, entry) if entry else None
    return found


def _event_fields(event: object) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(event)
    return fields


def _holder(arguments: argparse.Namespace) -> str:
    return f"{arguments.actor} ({os.getpid()})"


if __name__ == "__main__":
    main()

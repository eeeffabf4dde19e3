"""Tenants of a deployment: who may ask its models, with which keys, how much, and what they used.

python -m tools.tenants RUN add acme --class paid --weight 2
python -m tools.tenants RUN key create acme --models demo --days 90      (prints the key, once)
python -m tools.tenants RUN key rotate KEY_ID --overlap-hours 24
python -m tools.tenants RUN key revoke KEY_ID
python -m tools.tenants RUN limits set acme --requests-per-minute 600 --tokens-per-minute 200000 --concurrency 32
python -m tools.tenants RUN budget set acme --tokens 50000000 --money 250
python -m tools.tenants RUN price set demo --prompt 0.15 --completion 0.60
python -m tools.tenants RUN list | show acme | usage [--month 2026-11] | export --out bills.jsonl

RUN is a run's directory, or the URL of a database: a path, sqlite:///path or postgresql://...?schema=NAME. The secret
that hashes keys is made in the run's folder of keys; with a URL, `key create` and `key rotate` take --secret FOLDER.
Limits and budgets of the whole deployment: --deployment in place of a tenant. "none" takes a limit away.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.load import load_config
from learner_jax.runtime import FILE_MODE, write_whole
from serving_bridge.database import DatabaseError, is_postgres, open_database, sqlite_path
from serving_bridge.routing import KEYS_FOLDER
from serving_bridge.tenants import (
    LIMITS,
    PRIORITIES,
    TENANTS,
    Accounts,
    DeploymentSecret,
    Limits,
    NewKey,
    Price,
    Scopes,
    Tenant,
    TenantError,
    read_money,
    read_price,
    show_money,
)
from tools.assembly import clear_errors, run_paths
from tools.command_line import command_parser
from tools.reporting import terminal

_TIMEOUT_S = 5.0
_DAY_S = 86400.0
_RATES = ("requests_per_minute", "tokens_per_minute", "request_burst", "token_burst", "concurrency")


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    console = terminal.console()
    with clear_errors(), _opened(arguments) as accounts:
        match arguments.command:
            case None | "list":
                _print_tenants(accounts, console)
            case "add":
                made = accounts.add(
                    arguments.tenant,
                    priority=arguments.priority,
                    weight=arguments.weight,
                    consent=arguments.consent,
                    retention_days=arguments.retention_days,
                )
                console.print(f"tenant {made.name} is added, class {made.priority}, without limits and without keys")
            case "set":
                _change(accounts, arguments, console)
            case "show":
                _print_tenant(accounts, arguments.tenant, console)
            case "key":
                _key(accounts, arguments, console)
            case "limits" | "budget":
                _limits(accounts, arguments, console)
            case "price":
                _price(accounts, arguments, console)
            case "usage":
                _print_usage(accounts, arguments, console)
            case "export":
                _export(accounts, arguments, console)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("tenants", __doc__)
    parser.add_argument("place", metavar="RUN", help="a run's directory, e.g. runs/demo, or the URL of a database")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_tenant_commands(commands)
    _add_key_commands(commands)
    _add_limit_commands(commands)
    price = _sub(commands, "price", "what tokens of a model cost; without `set`: the table")
    price_set = price.add_subparsers(dest="action", metavar="ACTION").add_parser("set", help="set a model's price")
    price_set.add_argument("model", help='a model\'s name, or "*" for those that are not named')
    for part in ("prompt", "completion"):
        price_set.add_argument(f"--{part}", required=True, metavar="PRICE", help=f"of a million {part} tokens")
    usage = _sub(commands, "usage", "what was billed in a month, by tenant")
    export = _sub(commands, "export", "billed answers, one JSON line each")
    export.add_argument("--out", type=Path, metavar="FILE", help="written whole or not at all; by default stdout")
    for command in (usage, export):
        command.add_argument("--month", metavar="YYYY-MM", help="UTC" + ("; by default this one" * (command is usage)))
        command.add_argument("--tenant", metavar="TENANT", help="only this one's")
    usage.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _sub(commands: _Commands, name: str, told: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=told)


def _add_tenant_commands(commands: _Commands) -> None:
    _sub(commands, "list", "all tenants (default)")
    _sub(commands, "show", "a tenant with its limits and keys").add_argument("tenant", metavar="TENANT")
    add, change = _sub(commands, "add", "add a tenant"), _sub(commands, "set", "change a tenant")
    for command in (add, change):
        new = command is add
        command.add_argument("tenant", metavar="TENANT")
        command.add_argument("--class", dest="priority", choices=PRIORITIES, default="free" if new else None)
        command.add_argument("--weight", type=int, default=1 if new else None, help="its share among those that wait")
        command.add_argument(
            "--consent",
            action=argparse.BooleanOptionalAction,
            default=False if new else None,
            help="what it says may be trained on (default: no)",
        )
        command.add_argument(
            "--retention-days", type=int, default=0 if new else None, help="how long conversations may be kept"
        )
    change.add_argument("--suspended", action=argparse.BooleanOptionalAction, default=None, help="refuse its requests")
    change.add_argument("--new-salt", action="store_true", help="give it another cache salt")


def _add_key_commands(commands: _Commands) -> None:
    actions = _sub(commands, "key", "make, rotate or revoke keys").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("tenant", metavar="TENANT")
    create.add_argument("--label", default="", help="for people")
    create.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="only these")
    create.add_argument(
        "--routes", nargs="+", default=[], metavar="ROUTE", help="only these, e.g. /v1/chat/completions"
    )
    create.add_argument("--classes", nargs="+", default=[], choices=PRIORITIES, help="only these")
    rotate = actions.add_parser("rotate", help="make its successor and print that, once; both work for a while")
    rotate.add_argument("key_id", metavar="KEY_ID")
    rotate.add_argument("--overlap-hours", type=float, default=24.0, help="until the old one is refused (default: 24)")
    for command in (create, rotate):
        command.add_argument("--days", type=float, help="until it expires; by default never")
        command.add_argument("--secret", type=Path, metavar="FOLDER", help="folder of the secret that hashes keys")
    actions.add_parser("revoke", help="end a key for good").add_argument("key_id", metavar="KEY_ID")


def _add_limit_commands(commands: _Commands) -> None:
    for name, told in (("limits", "rates and concurrency"), ("budget", "tokens and money a month")):
        set_ = _sub(commands, name, told).add_subparsers(dest="action", required=True, metavar="ACTION")
        command = set_.add_parser("set", help=f"{told}; what is not named stays as it is")
        command.add_argument("tenant", nargs="?", metavar="TENANT")
        command.add_argument("--deployment", action="store_true", help="those of all tenants together")
        if name == "limits":
            for limit in _RATES:
                command.add_argument(f"--{limit.replace('_', '-')}", metavar="N", help='a whole number, or "none"')
        else:
            command.add_argument("--tokens", metavar="N", help='a whole number, or "none"')
            command.add_argument("--money", metavar="AMOUNT", help='in the price table\'s currency, or "none"')


@contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[Accounts]:
    """The tenants of a run's directory or behind a URL; `add` alone makes a database that is not there.

    Raises:
      DatabaseError: there is none.
      AccessError: keys are to be made, and the secret can't be read.
    """
    place, secret = arguments.place, getattr(arguments, "secret", None)
    url, config = place, Path(place) / "config.toml"
    if config.is_file():
        paths = run_paths(load_config(config, []))
        url, secret = paths.database, secret or paths.registry / KEYS_FOLDER
    elif Path(place).is_dir():
        raise DatabaseError(f"{place} has no config.toml: expected the directory of a run, or the URL of a database")
    if arguments.command != "add" and not is_postgres(url) and not sqlite_path(url).is_file():
        raise DatabaseError(f"{sqlite_path(url)} does not exist: `add` makes it with its first tenant")
    needs_secret = arguments.command == "key" and arguments.action != "revoke"
    if needs_secret and secret is None:
        raise TenantError("keys are made with the deployment's secret: give its folder (--secret FOLDER)")
    known = DeploymentSecret.in_folder(secret, make=True) if needs_secret and secret is not None else None
    database = open_database(url, timeout_s=_TIMEOUT_S, schema=TENANTS)
    try:
        yield Accounts(database, known)
    finally:
        database.close()


def _change(accounts: Accounts, arguments: argparse.Namespace, console: Console) -> None:
    names = ("priority", "weight", "consent", "retention_days", "suspended")
    values = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if not values and not arguments.new_salt:
        raise TenantError("nothing to set: expected at least one option (--help)")
    if values:
        accounts.change(arguments.tenant, **values)
    if arguments.new_salt:
        accounts.rotate_salt(arguments.tenant)
    _print_tenant(accounts, arguments.tenant, console)


def _key(accounts: Accounts, arguments: argparse.Namespace, console: Console) -> None:
    if arguments.action == "revoke":
        accounts.revoke_key(arguments.key_id)
        console.print(f"key {escape(arguments.key_id)} is revoked: gateways refuse it in a moment")
        return
    expires_s = None if arguments.days is None else time.time() + arguments.days * _DAY_S
    if arguments.action == "create":
        scopes = Scopes(tuple(arguments.models), tuple(arguments.routes), tuple(arguments.classes))
        made = accounts.create_key(arguments.tenant, label=arguments.label, scopes=scopes, expires_s=expires_s)
    else:
        overlap_s = arguments.overlap_hours * 3600.0
        made = accounts.rotate_key(arguments.key_id, overlap_s=overlap_s, expires_s=expires_s)
    _print_key(made)


def _print_key(made: NewKey) -> None:
    # The key alone on stdout, for a program that stores it.
    print(f"{made.info.key_id} of {made.info.tenant}; the key is shown this once:", file=sys.stderr)
    print(made.key)


def _limits(accounts: Accounts, arguments: argparse.Namespace, console: Console) -> None:
    if (arguments.tenant is None) != arguments.deployment:
        raise TenantError("expected either a tenant or --deployment")
    given: dict[str, int | None] = {}
    if arguments.command == "limits":
        for name in _RATES:
            if (text := getattr(arguments, name)) is not None:
                given[name] = _count(name, text)
    else:
        if arguments.tokens is not None:
            given["month_tokens"] = _count("tokens", arguments.tokens)
        if arguments.money is not None:
            given["month_nanos"] = None if arguments.money == "none" else read_money(arguments.money)
    if not given:
        raise TenantError("nothing to set: expected at least one option (--help)")
    limits = accounts.set_limits(arguments.tenant, given)
    console.print(f"{escape(arguments.tenant or 'deployment')}: {_told(limits)}")


def _count(name: str, text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TenantError(f"{name} {text!a}: expected a whole number above 0, or none")
    return int(text)


def _told(limits: Limits) -> str:
    shown = []
    for name in LIMITS:
        if (value := getattr(limits, name)) is not None:
            named = f"money a month {show_money(value)}" if name == "month_nanos" else f"{_words(name)} {value:,}"
            shown.append(named)
    return ", ".join(shown) or "no limits"


def _words(name: str) -> str:
    return "tokens a month" if name == "month_tokens" else name.replace("_", " ").replace(" per ", " a ")


def _price(accounts: Accounts, arguments: argparse.Namespace, console: Console) -> None:
    if arguments.action == "set":
        price = Price(read_price(arguments.prompt), read_price(arguments.completion))
        accounts.set_price(arguments.model, price)
    table = Table("model", "a million prompt tokens", "a million completion tokens", box=None)
    for model, price in accounts.prices().items():
        table.add_row(escape(model), f"{price.prompt:f}", f"{price.completion:f}")
    console.print(table if table.row_count else "no prices: every token is free")


def _print_tenants(accounts: Accounts, console: Console) -> None:
    console.print(f"deployment: {_told(accounts.limits(None))}")
    table = Table("tenant", "class", "weight", "limits", box=None)
    for tenant in accounts.tenants():
        state = " (suspended)" if tenant.suspended else ""
        table.add_row(f"{escape(tenant.name)}{state}", tenant.priority, str(tenant.weight), _told(tenant.limits))
    console.print(table if table.row_count else "no tenants: `add` makes one")


def _print_tenant(accounts: Accounts, name: str, console: Console) -> None:
    tenant = accounts.show(name)
    console.print(f"[bold]{escape(tenant.name)}[/]: {_facts(tenant)}")
    console.print(f"limits: {_told(tenant.limits)}")
    now = time.time()
    table = Table("key", "label", "state", "made", "expires", "covers", box=None)
    for key in accounts.keys(name):
        covers = ", ".join((*key.scopes.models, *key.scopes.routes, *key.scopes.classes)) or "all"
        replaced = f", replaced by {key.replaced_by}" if key.replaced_by else ""
        ends = "never" if key.expires_s is None else _day(key.expires_s)
        table.add_row(
            key.key_id, escape(key.label), key.state(now) + replaced, _day(key.created_s), ends, escape(covers)
        )
    console.print(table if table.row_count else "no keys: `key create` makes one")


def _facts(tenant: Tenant) -> str:
    consent = "may be trained on" if tenant.consent else "not trained on"
    kept = f"kept {tenant.retention_days} days" if tenant.retention_days else "not kept"
    suspended = ", suspended" if tenant.suspended else ""
    return f"class {tenant.priority}, weight {tenant.weight}; conversations {kept}, {consent}{suspended}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _print_usage(accounts: Accounts, arguments: argparse.Namespace, console: Console) -> None:
    month = arguments.month or datetime.now(UTC).strftime("%Y-%m")
    found = accounts.usage(month, arguments.tenant)
    if arguments.json:
        terminal.print_json(found)
        return
    table = Table("tenant", title=f"{month}, UTC", title_justify="left", box=None)
    for heading in ("answers", "prompt tokens", "completion tokens", "money", "billed as reserved"):
        table.add_column(heading, justify="right")
    for used in found:
        tokens = (f"{used.answers:,}", f"{used.prompt_tokens:,}", f"{used.completion_tokens:,}")
        table.add_row(escape(used.tenant), *tokens, show_money(used.nanos), f"{used.reserved:,}")
    console.print(table if found else f"nothing was billed in {month}")


def _export(accounts: Accounts, arguments: argparse.Namespace, console: Console) -> None:
    rows = accounts.export(month=arguments.month, tenant=arguments.tenant)
    lines = (msgspec.json.encode(row) + b"\n" for row in rows)
    if arguments.out is None:
        for line in lines:
            print(line.decode(), end="")
        return
    content = b"".join(lines)
    write_whole(arguments.out, content, mode=FILE_MODE)
    count = content.count(b"\n")
    console.print(f"{count:,} answers are in {escape(str(arguments.out))}")


if __name__ == "__main__":
    main()

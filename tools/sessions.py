"""Recorded conversations of users: what is kept of whom, and what is given back.

python -m tools.sessions RUN list [--tenant acme [--user U]]
python -m tools.sessions RUN show SESSION
python -m tools.sessions RUN export --out F.jsonl [--tenant acme [--user U]]     (a session a line, as text)
python -m tools.sessions RUN withdraw --tenant acme [--user U]                   (or --session SESSION)
python -m tools.sessions RUN purge                                               (what is past its time)

RUN is a run's directory, or the URL of a database. --user is the name that the tenant gives its user; only a hash of
it is kept. `withdraw` reaches everything that was made of the sessions; it can't be taken back.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner_jax.contracts import quoted
from learner_jax.runtime import FILE_MODE, write_whole
from serving_bridge.database import Database, empty_log, is_postgres
from serving_bridge.feedback import uncleaned_datasets, unerased_groups
from serving_bridge.recordings import Recorded, RecordingStore, SessionRow, ids_of, message_of, settle_journals
from tools.assembly import SESSIONS, clear_errors, recordings_of
from tools.command_line import command_parser, positive
from tools.reporting import terminal

_TIMEOUT_S = 5.0
_SHOWN = 50


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    console = terminal.console()
    with clear_errors(), recordings_of(arguments.place, timeout_s=_TIMEOUT_S) as (database, store):
        match arguments.command:
            case None | "list":
                _print_sessions(store, arguments, console)
            case "show":
                _print_session(store.read(arguments.session), console)
            case "export":
                _export(store, arguments, console)
            case "withdraw":
                _take_over_journals(store, arguments.place)
                reached = store.withdraw(tenant=arguments.tenant, user=arguments.user, session_id=arguments.session)
                console.print(f"{len(reached):,} sessions are withdrawn, with all that was made of them")
                _warn_of_rest(database, console)
            case "purge":
                _take_over_journals(store, arguments.place)
                console.print(f"{store.purge():,} sessions were past their time, and are emptied")
                _warn_of_rest(database, console)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("sessions", __doc__)
    parser.add_argument("place", metavar="RUN", help="a run's directory, e.g. runs/demo, or the URL of a database")
    parser.set_defaults(tenant="", user="", limit=_SHOWN, json=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    listing = commands.add_parser("list", help="sessions, those that were gone on with last first (default)")
    listing.add_argument("--limit", type=positive, default=_SHOWN, metavar="N", help="at most so many")
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    commands.add_parser("show", help="a session with its branches").add_argument("session", metavar="SESSION")
    export = commands.add_parser("export", help="kept sessions as JSON lines")
    export.add_argument("--out", type=Path, metavar="FILE", help="written whole or not at all; by default stdout")
    withdraw = commands.add_parser("withdraw", help="take back consent, and remove what it let be kept")
    withdraw.add_argument("--session", default="", metavar="SESSION", help="this one alone")
    commands.add_parser("purge", help="empty sessions that are past their time; gateways do so by themselves")
    for command in (listing, export, withdraw):
        command.add_argument("--tenant", default="", metavar="TENANT", help="only this one's")
        command.add_argument("--user", default="", metavar="USER", help="only this user's of the tenant")
    return parser


def _take_over_journals(store: RecordingStore, place: str) -> None:
    """What killed gateways of this host left goes to the database first, where a withdrawal reaches it."""
    folder = Path(place) / SESSIONS
    if folder.is_dir():
        settle_journals(store, folder)


def _warn_of_rest(database: Database, console: Console) -> None:
    """Says what a withdrawal did not reach."""
    if left := unerased_groups(database):
        console.print(
            f"[yellow]not erased: {left:,} groups in the learner's online queue; give the run's directory in place of "
            "the database's URL, as the owner of its schema, and run `purge`",
            highlight=False,
            soft_wrap=True,
        )
    if not (is_postgres(database.name) or empty_log(database)):
        console.print(
            "[yellow]deleted rows stand in the database's log until others let go of it; run `purge` again",
            soft_wrap=True,
        )
    for folder in uncleaned_datasets(database):
        console.print(
            f"[yellow]not cleaned: the dataset {escape(quoted(folder, 300))}, or examples that its copies.jsonl "
            "names, can't be reached, or is damaged; mend it, and run `purge`",
            highlight=False,
            soft_wrap=True,
        )


def _print_sessions(store: RecordingStore, arguments: argparse.Namespace, console: Console) -> None:
    found = store.listed(tenant=arguments.tenant, user=arguments.user, limit=arguments.limit)
    if arguments.json:
        terminal.print_json([_told(row) for row in found])
        return
    counts = store.counts()
    console.print(", ".join(f"{number:,} {name}" for name, number in counts.items()), highlight=False)
    if not found:
        return
    table = Table("session", "tenant", "state", "begun", "last answer", "kept until", box=None)
    for row in found:
        times = (_day(at_s) for at_s in (row.created_s, row.last_s, row.expires_s))
        table.add_row(escape(row.session_id), escape(row.tenant), row.state, *times)
    console.print(table)


def _print_session(kept: Recorded, console: Console) -> None:
    console.print(f"{escape(kept.row.session_id)}  {escape(kept.row.tenant)}  {kept.row.state}", highlight=False)
    for turn in kept.turns:
        for digest in turn.texts:
            _print_message(kept.texts[digest], turn.parent, console)
        for answer in (answer for answer in kept.answers if answer.turn_id == turn.turn_id):
            versions = sorted({span.version for span in answer.spans})
            ids = "text only" if answer.tokens is None else f"{len(ids_of(answer.tokens))} tokens of version {versions}"
            console.print(f"  [b]{escape(answer.answer_id)}[/b] ({ids}, {answer.arm})", highlight=False)
            _print_message(kept.texts[answer.text], "", console)


def _print_message(text: str, parent: str, console: Console) -> None:
    message = message_of(text)
    after = f" after {escape(parent)}" if parent else ""
    calls = "".join(f" [{quoted(call.name, 80)} {quoted(call.arguments, 200)}]" for call in message.calls)
    console.print(f"  {message.role}{after}: {escape(quoted(message.content, 500) + calls)}", highlight=False)


def _export(store: RecordingStore, arguments: argparse.Namespace, console: Console) -> None:
    sessions = store.each(tenant=arguments.tenant, user=arguments.user)
    lines = [msgspec.json.encode(exported(kept)) + b"\n" for kept in sessions]
    if arguments.out is None:
        sys.stdout.write(b"".join(lines).decode())
        return
    write_whole(arguments.out, b"".join(lines), mode=FILE_MODE)
    console.print(f"{len(lines):,} sessions are in {escape(str(arguments.out))}")


def exported(kept: Recorded) -> dict[str, Any]:
    """A session as a line of JSON: its turns with their messages, and the answers to each."""
    turns = []
    for turn in kept.turns:
        answers = [
            {
                "answer_id": answer.answer_id,
                "message": message_of(kept.texts[answer.text]).as_chat(),
                "finish_reason": answer.finish_reason,
                "arm": answer.arm,
                "temperature": answer.temperature,
                "propensity": answer.propensity,
                "policy_versions": [span.version for span in answer.spans],
                "tokens": None if answer.tokens is None else ids_of(answer.tokens),
            }
            for answer in kept.answers
            if answer.turn_id == turn.turn_id
        ]
        messages = [message_of(kept.texts[digest]).as_chat() for digest in turn.texts]
        turns.append({"after": turn.parent, "messages": messages, "rebuilt": turn.rebuilt, "answers": answers})
    return {**_told(kept.row), "turns": turns}


def _told(row: SessionRow) -> dict[str, Any]:
    named = ("session_id", "tenant", "user", "state", "created_s", "last_s", "expires_s")
    return {name: getattr(row, name) for name in named}


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    main()

"""Looks into a run's queue: how full it is, who holds what, what went wrong; gives dead letters another chance.

python -m tools.queue runs/demo                     (the same as `show`)
python -m tools.queue runs/demo dead                (dead letters and why)
python -m tools.queue runs/demo requeue ID...       (or --all)
python -m tools.queue runs/demo blobs [--sweep]     (payloads in files; --sweep takes back what no group needs)
python -m tools.queue runs/demo waiting             (groups that wait for rewards; --answers prints what to judge)
python -m tools.queue runs/demo reward FILE.jsonl   (rewards that came for them)
python -m tools.queue runs/demo ingress --token-env NAME   (takes rewards over HTTP until it is stopped)

Instead of the run's directory, the URL of its queue: a path, sqlite:///path or postgresql://...?schema=RUN. Payloads in
files are then found only where the queue keeps them by default, or with --blobs PLACE.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.load import load_config
from serving_bridge.database import DatabaseError, is_postgres, sqlite_path
from serving_bridge.queue import ENDED, Overview, QueueError, TrajectoryQueue
from serving_bridge.queue import rows as queue_rows
from tools.assembly import clear_errors, run_paths
from tools.command_line import command_parser
from tools.dashboard import read_token
from tools.queue_rewards import bring_rewards, print_answers, print_waiting, serve_rewards
from tools.reporting import terminal

#: A person who looks at a queue does not wait as long for a server that is away as a run does.
_TIMEOUT_S = 5.0


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "requeue" and bool(arguments.ids) == arguments.all:
        parser.error("requeue: expected either group ids or --all")
    console = terminal.console()
    with clear_errors(), opened(arguments.queue, arguments.blobs) as queue:
        now = time.time()
        match arguments.command:
            case None | "show":
                overview = queue.admin.overview()
                if getattr(arguments, "json", False):
                    terminal.print_json(overview)
                else:
                    print_overview(overview, console, name=queue.database.name, now=now)
            case "dead":
                overview = queue.admin.overview()
                if arguments.json:
                    terminal.print_json(overview.dead)
                else:
                    print_dead(overview, console, now=now)
            case "requeue":
                requeue_letters(queue, arguments.ids, console)
            case "waiting":
                if arguments.answers:
                    print_answers(queue, Path(arguments.queue))
                elif arguments.json:
                    terminal.print_json(queue.rewards.overview())
                else:
                    print_waiting(queue.rewards.overview(), console, now=now)
            case "reward":
                bring_rewards(queue, arguments.file, console, as_json=arguments.json)
            case "ingress":
                secret = read_token(arguments.token_env, arguments.token_file)
                assert secret is not None  # the parser asks for one of the two
                serve_rewards(queue, host=arguments.host, port=arguments.port, token=secret)
            case "blobs":
                print_blobs(queue, console, now=now, sweep=arguments.sweep)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("queue", __doc__)
    parser.add_argument("queue", help="a run's directory, e.g. runs/demo, or the URL of a queue")
    parser.add_argument("--blobs", metavar="PLACE", help="folder or URL where the queue of a URL keeps big payloads")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    show = commands.add_parser("show", help="how full it is and who holds what (default)")
    dead = commands.add_parser("dead", help="dead letters and why")
    requeue = commands.add_parser("requeue", help="give dead letters another chance")
    requeue.add_argument("ids", nargs="*", metavar="ID", help="group ids, as `dead` shows them")
    requeue.add_argument("--all", action="store_true", help="all of them")
    blobs = commands.add_parser("blobs", help="payloads in files")
    blobs.add_argument(
        "--sweep", action="store_true", help="take back files that no group needs and that are old enough"
    )
    waiting = commands.add_parser("waiting", help="groups that wait for rewards, and rewards that joined none")
    waiting.add_argument(
        "--answers", action="store_true", help="print JSON lines: each answer that waits, with its question and id"
    )
    reward = commands.add_parser("reward", help="bring rewards that come later than their answers")
    reward.add_argument(
        "file",
        metavar="FILE",
        help="JSON lines with trajectory_id, reward, and perhaps reward_id and parts; - for stdin",
    )
    ingress = commands.add_parser("ingress", help="take rewards over HTTP: POST /v1/rewards, as lines of `reward`")
    ingress.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen at")
    ingress.add_argument("--port", type=int, default=8791, metavar="P", help="port; 0 for any free one")
    token = ingress.add_mutually_exclusive_group(required=True)
    token.add_argument("--token-env", metavar="NAME", help="environment variable with the token that senders must have")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="file with that token, of mode 600")
    for command in (show, dead, waiting, reward):
        command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


@contextmanager
def opened(where: str, blobs: str | Path | None) -> Iterator[TrajectoryQueue]:
    """The queue of a run's directory or behind a URL; it must exist.

    Raises:
      DatabaseError: there is none.
    """
    url = where
    config = Path(where) / "config.toml"
    if config.is_file():
        paths = run_paths(load_config(config, []))
        url, blobs = paths.database, paths.blobs if blobs is None else blobs
    elif Path(where).is_dir():
        raise DatabaseError(f"{where} has no config.toml: expected the directory of a run, or the URL of a queue")
    if not is_postgres(url) and not sqlite_path(url).is_file():
        raise DatabaseError(f"{sqlite_path(url)} does not exist: expected the queue of a run that has begun")
    queue = TrajectoryQueue(url, blobs=blobs, timeout_s=_TIMEOUT_S)
    try:
        yield queue
    finally:
        queue.close()


def print_overview(overview: Overview, console: Console, *, name: str, now: float) -> None:
    progress = overview.progress
    finished = ", finished" if progress.finished else ""
    console.print(f"[bold]{escape(name)}[/]", highlight=False, soft_wrap=True)
    console.print(
        f"learner: step {progress.completed_steps}, version {progress.trained_version}{finished}; "
        f"prompts: {progress.next_prompt} dispatched, {progress.num_claimed} being worked on, "
        f"all below {overview.watermark} ended"
    )
    states = Table("state", box=None)
    for heading in ("groups", "payload", "oldest"):
        states.add_column(heading, justify="right")
    for row in overview.states:
        kept = row.oldest_s is not None and row.state not in ENDED
        states.add_row(
            f"[red]{row.state}[/]" if row.state == "dead" and row.num_groups else row.state,
            f"{row.num_groups:,}",
            _size(row.num_bytes) if row.num_bytes else "",
            f"{_duration(now - row.oldest_s)} ago" if kept and row.oldest_s is not None else "",
        )
    console.print(states)
    if overview.leases:
        table = Table("consumer", "leased groups", "until", box=None)
        for lease in overview.leases:
            table.add_row(escape(lease.consumer) or "unknown", f"{lease.num_groups:,}", _until(lease.until_s, now))
        console.print(table)
    if overview.claims:
        table = Table("worker", "claimed prompts", "from", "to", "until", box=None)
        for claim in overview.claims:
            ends = (str(claim.first), str(claim.last), _until(claim.until_s, now))
            table.add_row(escape(claim.worker), f"{claim.num_prompts:,}", *ends)
        console.print(table)
    if overview.num_blobs:
        console.print(f"{overview.num_blobs:,} payloads are files (`blobs` says more)")
    if overview.dead:
        console.print(f"{len(overview.dead):,} dead letters (`dead` says why, `requeue` tries them again)")


def print_dead(overview: Overview, console: Console, *, now: float) -> None:
    if not overview.dead:
        console.print("no dead letters")
        return
    table = Table(box=None)
    table.add_column("group", no_wrap=True)
    for heading in ("put", "tries", "payload"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for letter in overview.dead:
        age = f"{_duration(now - letter.put_s)} ago"
        size = _size(letter.num_bytes)
        table.add_row(escape(letter.group_id), age, str(letter.tries), size, escape(letter.reason))
    console.print(table)


def requeue_letters(queue: TrajectoryQueue, group_ids: list[str], console: Console) -> None:
    """Requeues these, or all without any.

    Raises:
      QueueError: one of them is no dead letter; the others were requeued.
    """
    done = queue.admin.requeue(group_ids or None)
    console.print(f"{len(done)} dead letters are ready again", highlight=False)
    if unknown := sorted(set(group_ids) - set(done)):
        raise QueueError(f"{', '.join(unknown)}: no dead letter; `dead` lists them")


def print_blobs(queue: TrajectoryQueue, console: Console, *, now: float, sweep: bool) -> None:
    if queue.blobs is None:
        raise QueueError("where this queue keeps big payloads is not known: give the run's directory or --blobs PLACE")
    wanted = queue.database.read(queue_rows.wanted_files)
    files = {name: (num_bytes, written_s) for name, num_bytes, written_s in queue.blobs.files()}
    spares = {name: (num_bytes, written_s) for name, num_bytes, written_s in queue.blobs.spares()}
    console.print(f"[bold]{escape(queue.blobs.address)}[/]", highlight=False, soft_wrap=True)
    table = Table("files", box=None)
    for heading in ("number", "size", "oldest"):
        table.add_column(heading, justify="right")
    for label, shown in (
        ("of groups", {name: file for name, file in files.items() if name in wanted}),
        ("of no group", {name: file for name, file in files.items() if name not in wanted}),
        ("spare", spares),
    ):
        oldest = min((written_s for _, written_s in shown.values()), default=now)
        size = sum(num_bytes for num_bytes, _ in shown.values())
        table.add_row(label, f"{len(shown):,}", _size(size), f"{_duration(now - oldest)} ago" if shown else "")
    console.print(table)
    if missing := sum(count for name, count in wanted.items() if name not in files):
        console.print(f"[red]{missing:,} groups miss their file[/] and will become dead letters")
    if sweep:
        console.print(f"took back {queue.admin.sweep_blobs():,} files of no group, all that were older than an hour")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _until(end_s: float, now: float) -> str:
    if end_s <= 0:
        return "[yellow]given up[/]"  # what was held was taken back, which is written as the beginning of time
    return f"in {_duration(end_s - now)}" if end_s >= now else f"[yellow]ran out {_duration(now - end_s)} ago[/]"


if __name__ == "__main__":
    main()

"""What `tools.queue` shows of groups that wait for rewards, and how it brings them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.load import load_config
from learner_jax.contracts import ContractError, Trajectory
from serving_bridge.delayed_rewards import OUTCOMES, Arrival, RewardIngress, read_arrival
from serving_bridge.queue import QueueError, RewardsOverview, TrajectoryQueue
from serving_bridge.text import Tokenizer, load_tokenizer
from tools.assembly import base_model_dir, run_paths
from tools.reporting import terminal

#: Lines that are checked before any of them is stored, and brought in one call.
_AT_ONCE = 1000
_MAX_LINE_BYTES = 2**20
_SHOWN = 20


def print_waiting(overview: RewardsOverview, console: Console, *, now: float) -> None:
    """Groups that wait, those that are due first, and what became of rewards so far."""
    counts = Table("rewards", box=None)
    counts.add_column("number", justify="right")
    for outcome in OUTCOMES:
        counts.add_row(outcome, f"{overview.counts[outcome]:,}")
    console.print(f"{overview.num_waiting:,} groups wait for rewards", highlight=False)
    if overview.waiting:
        table = Table("group", box=None)
        for heading in ("rewards missing", "due in"):
            table.add_column(heading, justify="right")
        for group in overview.waiting[:_SHOWN]:
            missing = f"{group.num_missing} of {group.num_answers}"
            table.add_row(escape(group.group_id), missing, f"{group.due_s - now:,.0f} s")
        console.print(table)
    console.print(counts)
    if overview.kept:
        kept = Table("joined nothing", "reward", "why", box=None)
        kept.add_column("value", justify="right")
        for one in overview.kept[:_SHOWN]:
            kept.add_row(escape(one.subject), escape(one.reward_id), one.outcome, f"{one.value:g}")
        console.print(kept)


def print_answers(queue: TrajectoryQueue, directory: Path) -> None:
    """Every answer that waits as a line of JSON, with its text where the run's tokenizer is at hand."""
    tokenizer = _tokenizer(directory)
    overview = queue.rewards.overview()
    due_s = {group.group_id: group.due_s for group in overview.waiting}
    for group_id, group in queue.rewards.groups(list(due_s)).items():
        for trajectory in group:
            if trajectory.verdict != "pending":
                continue
            line = {"trajectory_id": trajectory.trajectory_id, "due_s": due_s[group_id], **trajectory.prompt}
            if tokenizer is not None:
                line["answer"] = _answer(trajectory, tokenizer)
            sys.stdout.write(json.dumps(line) + "\n")


def bring_rewards(queue: TrajectoryQueue, file: str, console: Console, *, as_json: bool) -> None:
    """Brings the rewards of a file. Rewards of lines before a wrong one are stored; bringing all again changes nothing.

    Raises:
      QueueError: the file can't be read, or a line is no reward; says which.
    """
    counted: Counter[str] = Counter()
    for arrivals in _read(file):
        counted.update(queue.rewards.bring(arrivals))
    if as_json:
        terminal.print_json({outcome: counted[outcome] for outcome in OUTCOMES})
        return
    told = ", ".join(f"{counted[outcome]:,} {outcome}" for outcome in OUTCOMES if counted[outcome])
    console.print(f"{counted.total():,} rewards: {told or 'none'}", highlight=False)


def serve_rewards(queue: TrajectoryQueue, *, host: str, port: int, token: str) -> None:
    """Takes rewards over HTTP until SIGINT or SIGTERM.

    Raises:
      IngressError: the address can't be had.
    """
    asyncio.run(_serve(queue, host, port, token))


async def _serve(queue: TrajectoryQueue, host: str, port: int, token: str) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    ingress = RewardIngress(queue.rewards.bring, host=host, port=port, token=token, log=_say)
    _say(f"{await ingress.start()}/v1/rewards takes rewards for {queue.database.name} (Ctrl-C ends it)")
    try:
        await stopped.wait()
    finally:
        await ingress.close()


def _say(line: str) -> None:
    print(line, flush=True)


def _read(file: str) -> Iterator[list[Arrival]]:
    if file == "-":
        yield from _arrivals(sys.stdin.buffer, "standard input")
        return
    try:
        with Path(file).open("rb") as lines:
            yield from _arrivals(lines, file)
    except OSError as error:
        raise QueueError(f"{file} can't be read: {error.strerror or error}") from error


def _arrivals(lines: BinaryIO, name: str) -> Iterator[list[Arrival]]:
    found: list[Arrival] = []
    number = 0
    while line := lines.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise QueueError(f"{name}, line {number}: more than {_MAX_LINE_BYTES} bytes, which is no reward")
        if not line.strip():
            continue
        try:
            found.append(read_arrival(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))
        except ContractError as error:
            raise QueueError(f"{name}, line {number}: {error}") from error
        if len(found) == _AT_ONCE:
            yield found
            found = []
    if found:
        yield found


def _tokenizer(directory: Path) -> Tokenizer | None:
    config = directory / "config.toml"
    if not config.is_file():
        return None
    loaded = load_config(config, [])
    return load_tokenizer(base_model_dir(loaded, run_paths(loaded)))


def _answer(trajectory: Trajectory, tokenizer: Tokenizer) -> str:
    """What the policy said: of a dialog, its last answer."""
    last = trajectory.turn[trajectory.loss_mask].max()
    return tokenizer.decode(trajectory.tokens[trajectory.loss_mask & (trajectory.turn == last)].tolist())

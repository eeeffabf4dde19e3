"""Throws malformed records at everything that reads what another process wrote.

    python -m tools.testing.fuzz [--records 100000] [--seed 0]

Trajectories with wrong lengths and dtypes, NaN, another tokenizer, huge, truncated, of other schema versions, with
duplicate ids, or just of random bytes go through the queue: each is leased only if it is valid, value by value, and
else a dead letter with a reason. Rows that were changed past the queue are buried, and all others leased. Control
messages (manifests of weights and checkpoints, answers of a replica, rows and orders of the fleet, lines of metrics)
are refused by the error that their readers promise, or left out.

Exit status 1, with the seed and the record, if anything crashed or something invalid was taken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.fuzz import control, rows, through_queue, trajectories

#: records of one kind at a time
_BATCH = 200
#: of the trajectories that come from another process, one batch in so many is of objects that this process built
_OBJECTS_EVERY = 20


@dataclass
class Findings:
    """What became of the records, by kind; and what should not have happened."""

    refused: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        return self.refused.total() + self.taken.total()


def fuzz(records: int, seed: int, done: Callable[[int], None] = lambda number: None) -> Findings:
    """At least so many records, half of them trajectories; every batch has a generator of its own, from the seed."""
    found = Findings()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        messages = control.messages(Path(folder), runner.run)
        kinds = through_queue.kinds()
        for batch in range(-(-records // (2 * _BATCH))):
            try:
                _trajectories(found, np.random.default_rng((seed, batch, 0)), batch, kinds)
                _messages(found, np.random.default_rng((seed, batch, 1)), messages)
                taken, reasons = rows.damage_rows(np.random.default_rng((seed, batch, 2)))
                found.taken["row of the queue"] += taken
                found.refused["row of the queue"] += len(reasons)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                found.failures.append(f"seed {seed}, batch {batch}: {type(error).__name__}: {error}")
            done(found.num_records)
    return found


def _trajectories(found: Findings, rng: np.random.Generator, batch: int, kinds: list[str]) -> None:
    numbers = [batch * _BATCH + number for number in range(_BATCH)]
    if batch % _OBJECTS_EVERY == 0:
        found.refused["object at put"] += len(through_queue.put_broken(rng, numbers))
        return
    chosen = [kinds[(batch + number) % len(kinds)] for number in range(_BATCH)]
    payloads = {number: trajectories.payload(rng, number, kind) for number, kind in zip(numbers, chosen, strict=True)}
    for kind, (number, payload) in zip(chosen, payloads.items(), strict=True):
        reason = trajectories.refused(payload, number)
        (found.taken if reason is None else found.refused)[f"trajectory: {kind}"] += 1
        if reason is None and kind in trajectories.BREAKING:
            found.failures.append(f"batch {batch}: a trajectory with {kind} was taken")
    taken, _ = through_queue.lease_all(payloads)
    expected = sum(trajectories.refused(payload, number) is None for number, payload in payloads.items())
    if taken != expected:
        found.failures.append(f"batch {batch}: the queue took {taken} groups, expected {expected}")


def _messages(found: Findings, rng: np.random.Generator, messages: list[control.Message]) -> None:
    for number in range(_BATCH):
        message = messages[number % len(messages)]
        payload = control.damaged(rng, message)
        try:
            reason = message.read(payload)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            found.failures.append(f"{message.name} {payload[:300]!r}: {type(error).__name__}: {error}")
        else:
            (found.taken if reason is None else found.refused)[message.name] += 1


def table(found: Findings) -> Table:
    shown = Table("record", "refused", "taken, and valid")
    for kind in sorted(found.refused.keys() | found.taken.keys()):
        shown.add_row(kind, str(found.refused[kind]), str(found.taken[kind]))
    return shown


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000, help="default 100000")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    terminal.prepare_streams()
    console = terminal.console()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("records", total=given.records)
        found = fuzz(given.records, given.seed, lambda number: bar.update(task, completed=number))
    console.print(table(found))
    for failure in found.failures[:20]:
        console.print(f"FAILED: {failure}", markup=False, highlight=False)
    console.print(f"{found.num_records} records, {len(found.failures)} failures (seed {given.seed})", highlight=False)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())

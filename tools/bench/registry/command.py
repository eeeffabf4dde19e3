"""What a large registry costs those who look into it, and who move an alias of it.

python -m tools.bench registry [--entries 100000] [--rounds 20] [--dir FOLDER] [--database URL] [--json PATH]

An index in an SQLite file, or in a schema of PostgreSQL that has no entries yet: entries in chains of a hundred
ancestors, as runs that go on from each other leave. Then, in turns: the newest 50 entries, one entry with its aliases,
the lineage of one (100 ancestors), and a move of two aliases, which waits for the disk. Beside the move stands one
fsync of 4 KiB in the same folder: nothing durable is quicker.

Not covered: several who move at once, a network to the server, and the weights.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from serving_bridge.database import Session, open_database
from serving_bridge.registry import ENTRY_SCHEMA, REGISTRY, Entry, Origin, RegistryIndex, digest, encode_entry
from tools.bench.timing import bench_parser, console, positive, progress, spread, this_hardware, write_json

#: milliseconds that each may take
AIM_MS = 50.0
_CHAIN = 100
_BATCH = 1000
_NAMESPACE = "bench"
_ALIASES = ("stable", "previous")


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table and the aim, and writes them as JSON where asked to."""
    parser = bench_parser("registry", __doc__)
    parser.add_argument("--entries", type=positive, default=100_000, help="entries of the index (default 100000)")
    parser.add_argument("--rounds", type=positive, default=20, help="turns of each (default 20)")
    parser.add_argument("--dir", type=Path, help="an existing folder on the disk to measure (default: the system's)")
    parser.add_argument("--database", metavar="URL", help="postgresql://...?schema=NAME (default: an SQLite file)")
    given = parser.parse_args(argv)
    out = console()
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        seconds = measure(Path(folder), given.entries, rounds=given.rounds, url=given.database)
    hardware = this_hardware()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    table = Table("what", "ms", title=f"{given.entries:,} entries")
    spreads = {name: spread([1e3 * value for value in values]) for name, values in seconds.items()}
    for name, value in spreads.items():
        table.add_row(name, value.show())
    out.print(table)
    reached = "reached" if max(value.median for value in spreads.values()) < AIM_MS else "not reached"
    out.print(f"below {AIM_MS:g} ms each is the aim: {reached}", highlight=False)
    if given.json is not None:
        settings = {"entries": given.entries, "rounds": given.rounds}
        results = {name: asdict(value) for name, value in spreads.items()}
        write_json(Path(given.json), "registry", hardware, settings, results)
        out.print(f"wrote {given.json}", highlight=False)


def measure(folder: Path, num_entries: int, *, rounds: int, url: str | None = None) -> dict[str, list[float]]:
    """Seconds of each, a round each.

    Args:
      url: of a database without entries; None: an SQLite file in `folder`.

    Raises:
      DatabaseError: it can't be opened, or has entries.
    """
    database = open_database(url or folder / "index.sqlite", schema=REGISTRY)
    try:
        with progress() as bar:
            task = bar.add_task("adding entries", total=num_entries)
            database.write(lambda session: _fill(session, num_entries, lambda done: bar.advance(task, done)))
        index = RegistryIndex(database, clock=time.time)
        lease = index.aliases.take_lease(_NAMESPACE, "bench", 3600)

        def move(number: int) -> None:
            aliases = {alias: 1 + (number + place) % num_entries for place, alias in enumerate(_ALIASES)}
            index.aliases.move(lease, aliases, actor="bench", reason="measured", unproven=True)

        calls: dict[str, Callable[[int], Any]] = {
            "list the newest 50": lambda number: index.entries(_NAMESPACE),
            "look at one": lambda number: index.standing(_NAMESPACE, 1 + number * 7919 % num_entries),
            "lineage of one": lambda number: index.lineage(_NAMESPACE, num_entries - number % num_entries),
            "move two aliases": move,
            "one fsync": lambda number: _sync_once(folder),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(-1, rounds):
            for name, call in calls.items():
                begin = time.perf_counter()
                call(max(0, number))
                if number >= 0:  # the first warms up
                    seconds[name].append(time.perf_counter() - begin)
        return seconds
    finally:
        database.close()


def _fill(session: Session, num_entries: int, done: Callable[[int], None]) -> None:
    previous = ""
    for first in range(1, num_entries + 1, _BATCH):
        numbers = range(first, min(first + _BATCH, num_entries + 1))
        entries: list[tuple[Any, ...]] = []
        for number in numbers:
            entry = _entry(number, previous, None if number % _CHAIN == 1 else number - 1)
            document = encode_entry(entry)
            previous = digest(document)
            entries.append(
                (_NAMESPACE, number, entry.parent, document, previous, entry.content, number, entry.created_s)
            )
        session.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, 'candidate', 1, ?)", entries)
        session.executemany(
            "INSERT INTO events (namespace, number, kind, body, actor, reason, created_s) "
            "VALUES (?, ?, 'registered', '{}', 'bench', '', ?)",
            [(_NAMESPACE, row[1], row[-1]) for row in entries],
        )
        done(len(numbers))


def _entry(number: int, previous: str, parent: int | None) -> Entry:
    return Entry(
        schema=ENTRY_SCHEMA,
        namespace=_NAMESPACE,
        number=number,
        previous=previous,
        parent=parent,
        origin=Origin("run", "bench", 1, number),
        content=digest(str(number)),
        shape=digest("shape"),
        tokenizer=digest("tokenizer"),
        weight_version=number,
        num_parameters=135_000_000,
        dtype="bfloat16",
        files=[],
        data=[],
        versions={},
        consent="",
        note="",
        actor="bench",
        created_s=float(number),
    )


def _sync_once(folder: Path) -> None:
    descriptor = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(descriptor, os.urandom(4096), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

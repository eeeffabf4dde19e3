"""What the queue costs: trajectories taken through put, lease, mark_trained and acknowledge, each commit durable.

python -m tools.bench queue [--batch 16] [--kilobytes 100] [--rounds 9] [--directory DIR] [--json PATH]
python -m tools.bench queue --volume [--hours 24] [--rate 4] [--sides sqlite postgres]

Sides take turns, `--batches` batches each: Weir on SQLite and on PostgreSQL (over a local socket, on the same disk;
"postgres rows" keeps payloads in the server instead of files that all hosts see), persist-queue's SQLiteAckQueue with
one item a trajectory and with one item a batch, the disk itself (the same bytes written and synced once per batch,
encoding not counted), and encoding, checking and decoding alone. Ratios are throughputs, taken within a round.

Each turn comes in two ways: as in a run, where one process puts while another leases, marks and acknowledges
(persist-queue's items can't be shared by processes: two threads), and in one process, one timed operation after the
other. Weir's sides are held against the faster of persist-queue's two.

`--volume` takes what a run puts in in `--hours` at `--rate` trajectories per second through as fast as it can, with a
checkpoint every 8 batches, and shows whether memory, open files and database grow: the last quarter against the second.

Name a --directory on the disk that a run would use. Not covered: many workers at once, network between the hosts.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from learner_jax.runtime import keep_freed_memory
from serving_bridge.settings import StoreSettings
from tools.bench import BenchmarkError
from tools.bench.queue.postgres_server import NoServerError, running_server
from tools.bench.queue.sides import CodecSide, DiskSide, PersistQueueSide, Side, WeirSide, named, trajectories
from tools.bench.queue.streams import DiskStream, PersistQueueStream, Stream, WeirStream
from tools.bench.timing import (
    Spread,
    bench_parser,
    console,
    positive,
    progress,
    ratio,
    spread,
    this_hardware,
    write_json,
)

SIDES = ("sqlite", "postgres", "postgres rows", "persist-queue", "persist-queue whole", "disk", "codec")
#: Weir's throughput should be at least this share of the disk's, and this many times the peer's.
DISK_AIM, PEER_AIM = 0.5, 5.0
_PEER = "persist-queue"
_CHECKPOINT_EVERY = 8
#: PostgreSQL looks each minute for what can be reused; a day is pressed into minutes here, and so is that minute.
_SERVER = "autovacuum_naptime = 1s"
#: Growth that counts as none: as a share of the figure itself; of the database, of the bytes that went through too.
_STEADY, _KEPT = 0.05, 0.01


@dataclass(frozen=True)
class Row:
    """One side over its rounds.

    Attributes:
      of_disk, of_peer: throughput relative to the disk's, and to persist-queue's in the way that is faster for it (one
        item a trajectory).
      p99_ms: of a batch, by operation.
    """

    side: str
    trajectories_per_s: Spread
    megabytes_per_s: Spread
    of_disk: Spread | None
    of_peer: Spread | None
    p99_ms: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """This process and the database after some trajectories."""

    count: int
    rss_bytes: int
    num_files: int
    database_bytes: int
    blob_bytes: int


def main(argv: Sequence[str]) -> None:
    """Measures, prints tables and aims, and writes them as JSON where asked to."""
    parser = bench_parser("queue", __doc__)
    parser.add_argument("--batch", type=positive, default=16, help="trajectories of a transaction (default 16)")
    parser.add_argument("--kilobytes", type=positive, default=100, help="of one trajectory (default 100)")
    parser.add_argument("--batches", type=positive, default=20, help="batches of a turn (default 20)")
    parser.add_argument("--rounds", type=positive, default=9, help="turns of each side (default 9)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default all, of --volume sqlite")
    parser.add_argument("--volume", action="store_true", help="a day's volume instead of a comparison")
    parser.add_argument("--hours", type=positive, default=24, help="of --volume (default 24)")
    parser.add_argument("--rate", type=positive, default=4, help="trajectories per second of --volume (default 4)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where everything is written, and deleted")
    given = parser.parse_args(argv)
    if given.directory is not None and not given.directory.is_dir():
        parser.error(f"--directory {given.directory}: expected an existing folder")
    sides: list[str] = given.sides or (["sqlite"] if given.volume else list(SIDES))
    if given.volume and not set(sides) <= {"sqlite", "postgres"}:
        parser.error("--volume: expected --sides sqlite or postgres")
    keep_freed_memory()  # as the run's processes do
    hardware = this_hardware()
    out = console()
    out.print(f"queue: {given.kilobytes} KB trajectories in batches of {given.batch}", highlight=False)
    out.print(str(hardware), highlight=False, soft_wrap=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.directory) as folder:
        if given.volume:
            count = given.hours * 3600 * given.rate
            out.print(
                f"{given.hours} h at {given.rate} trajectories/s: {count:,}, {count * given.kilobytes / 1e6:.1f} GB"
            )
            for side in sides:
                samples, seconds = volume(
                    side, Path(folder), count, batch=given.batch, num_bytes=1000 * given.kilobytes
                )
                out.print(volume_table(side, samples))
                out.print(volume_verdict(side, samples, seconds, num_bytes=1000 * given.kilobytes), highlight=False)
                results[side] = {"seconds": seconds, "samples": [asdict(sample) for sample in samples]}
        else:
            streams, rows = compare(
                sides,
                Path(folder),
                batch=given.batch,
                num_bytes=1000 * given.kilobytes,
                batches=given.batches,
                rounds=given.rounds,
            )
            out.print(table("one process puts, another takes out", streams))
            for line in itertools.chain.from_iterable(map(verdicts, streams)):
                out.print(line, highlight=False)
            out.print(table("one process, one operation after the other", rows))
            results |= {"streams": [asdict(row) for row in streams], "rows": [asdict(row) for row in rows]}
    if given.json is not None:
        settings = {key: value for key, value in vars(given).items() if key not in ("json", "directory")}
        write_json(given.json, "queue", hardware, settings, results)
        out.print(f"wrote {given.json}", highlight=False)


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Side]:
    """A side of its own folder.

    Raises:
      BenchmarkError: what it needs is not installed.
    """
    place = folder / name.replace(" ", "-")
    place.mkdir(mode=0o755)
    with ExitStack() as stack:
        match name:
            case "sqlite" | "postgres" | "postgres rows":
                side: Side = WeirSide(**stack.enter_context(_weir(name, folder, place)))
            case "persist-queue" | "persist-queue whole":
                side = PersistQueueSide(place, whole=name.endswith("whole"))
            case "codec":
                side = CodecSide()
            case _:
                side = DiskSide(place / "file")
        stack.callback(side.close)
        yield side


@contextmanager
def streaming(name: str, folder: Path, *, batch: int, num_bytes: int) -> Iterator[Stream]:
    """The same as a stream; of `SIDES` all but "codec"."""
    place = folder / f"{name.replace(' ', '-')}-stream"
    place.mkdir(mode=0o755)
    with ExitStack() as stack:
        match name:
            case "sqlite" | "postgres" | "postgres rows":
                where = stack.enter_context(_weir(name, folder, place))
                stream: Stream = WeirStream(**where, num_bytes=num_bytes, batch=batch)
            case "persist-queue" | "persist-queue whole":
                stream = PersistQueueStream(place, whole=name.endswith("whole"), num_bytes=num_bytes, batch=batch)
            case _:
                stream = DiskStream(place / "file", num_bytes=num_bytes, batch=batch)
        stack.callback(stream.close)
        yield stream


@contextmanager
def _weir(name: str, folder: Path, place: Path) -> Iterator[dict[str, Any]]:
    """Settings of a queue of its own."""
    blob_bytes = 2**30 if name.endswith("rows") else StoreSettings().blob_bytes
    if name == "sqlite":
        yield {"url": str(place / "state.db"), "blobs": place / "blobs", "blob_bytes": blob_bytes}
        return
    folder.chmod(0o755)  # the server runs as another user
    try:
        with running_server(directory=folder, settings=_SERVER) as server:
            yield {"url": server.url, "blobs": place / "blobs", "blob_bytes": blob_bytes}
    except NoServerError as error:
        raise BenchmarkError(f"side {name}: {error}") from error


def compare(
    names: Sequence[str], folder: Path, *, batch: int, num_bytes: int, batches: int, rounds: int
) -> tuple[list[Row], list[Row]]:
    """Takes turns, the first of which is not counted; returns the figures of streams and of single operations."""
    prototypes = trajectories(batch, num_bytes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    streamed: dict[str, list[float]] = {name: [] for name in names if name != "codec"}
    operations: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    with ExitStack() as stack, progress() as bar:
        sides = {name: stack.enter_context(opened(name, folder)) for name in names}
        streams = {
            name: stack.enter_context(streaming(name, folder, batch=batch, num_bytes=num_bytes)) for name in streamed
        }
        task = bar.add_task("warming up", total=(rounds + 1) * (len(sides) + len(streams)))
        for i in range(rounds + 1):
            first = i % len(names)
            for name in [*names[first:], *names[:first]]:
                bar.update(task, advance=1, description=name)
                turn = 0.0
                for _ in range(batches):
                    indices = sides[name].prepare(batch)
                    found = sides[name].take(indices, named(prototypes, indices))
                    turn += sum(found.values())
                    for operation, taken in found.items():
                        operations[name][operation] += [taken] if i else []
                seconds[name] += [turn] if i else []
            for name in [*names[first:], *names[:first]]:
                if name in streams:
                    bar.update(task, advance=1, description=name)
                    turn = streams[name].through([streams[name].prepare(batch) for _ in range(batches)])
                    streamed[name] += [turn] if i else []
    count = batch * batches
    peer = list(map(min, seconds[_PEER], streamed[_PEER])) if _PEER in names else None
    return (
        [_row(name, streamed, peer, {}, count=count, num_bytes=count * num_bytes) for name in streamed],
        [_row(name, seconds, peer, operations[name], count=count, num_bytes=count * num_bytes) for name in names],
    )


def _row(
    name: str,
    seconds: Mapping[str, list[float]],
    peer: list[float] | None,
    operations: Mapping[str, list[float]],
    *,
    count: int,
    num_bytes: int,
) -> Row:
    own = seconds[name]
    return Row(
        side=name,
        trajectories_per_s=spread([count / taken for taken in own]),
        megabytes_per_s=spread([num_bytes / 1e6 / taken for taken in own]),
        of_disk=ratio(seconds["disk"], own) if "disk" in seconds else None,
        of_peer=None if peer is None else ratio(peer, own),
        p99_ms={key: 1e3 * float(np.percentile(values, 99)) for key, values in operations.items()},
    )


def table(title: str, rows: Sequence[Row]) -> Table:
    found = Table(title=f"{title}: median (10th-90th percentile) over rounds", title_justify="left")
    found.add_column("side")
    for heading in ("trajectories/s", "MB/s", "of the disk", "times persist-queue"):
        found.add_column(heading, justify="right")
    timed = any(row.p99_ms for row in rows)
    if timed:
        found.add_column("p99 of a batch, ms")
    for row in rows:
        found.add_row(
            row.side,
            row.trajectories_per_s.show(),
            row.megabytes_per_s.show(),
            "" if row.of_disk is None else row.of_disk.show(digits=2),
            "" if row.of_peer is None else row.of_peer.show(digits=2),
            *([", ".join(f"{operation} {taken:.1f}" for operation, taken in row.p99_ms.items())] if timed else []),
        )
    return found


def verdicts(row: Row) -> Iterator[str]:
    """Whether Weir's own sides are as fast as they should be."""
    if not row.side.startswith(("sqlite", "postgres")):
        return
    if row.of_disk is not None:
        met = "met" if row.of_disk.median >= DISK_AIM else "missed"
        yield f"{row.side}: {row.of_disk.median:.2f} of the disk's throughput; at least {DISK_AIM} is the aim: {met}"
    if row.of_peer is not None:
        met = "met" if row.of_peer.median >= PEER_AIM else "missed"
        yield f"{row.side}: {row.of_peer.median:.1f} times persist-queue; at least {PEER_AIM:g} is the aim: {met}"


def volume(
    name: str, folder: Path, count: int, *, batch: int, num_bytes: int, num_samples: int = 40
) -> tuple[list[Sample], float]:
    """Samples taken evenly while so many trajectories went through, and the seconds that they took."""
    prototypes = trajectories(batch, num_bytes)
    samples: list[Sample] = []
    with opened(name, folder) as side, progress() as bar:
        assert isinstance(side, WeirSide)
        queue, waiting = side.queue, []
        task = bar.add_task(f"{name}: {count:,} trajectories", total=count)
        started = time.perf_counter()
        for step, done in enumerate(range(0, count, batch), start=1):
            indices = side.prepare(min(batch, count - done))
            groups = named(prototypes[: len(indices)], indices)
            queue.producer.put(list(zip(indices, groups, strict=True)))
            report = queue.consumer.lease_groups(batch, trained_version=1, max_staleness=1)
            ids = [group[0].group_id for group in report.groups]
            queue.consumer.mark_trained(ids, completed_steps=0, trained_version=1)
            waiting += ids
            if step % _CHECKPOINT_EVERY == 0:
                queue.consumer.acknowledge(waiting)
                waiting = []
            if done + batch >= count * (len(samples) + 1) / num_samples:
                samples.append(_sample(side, folder, done + len(indices)))
            bar.update(task, advance=len(indices))
        queue.consumer.acknowledge(waiting)
        seconds = time.perf_counter() - started
        if (acknowledged := queue.admin.progress().num_acknowledged) != count:
            raise BenchmarkError(f"{name}: {acknowledged} of {count} trajectories were acknowledged")
    return samples, seconds


def _sample(side: WeirSide, folder: Path, count: int) -> Sample:
    database = side.queue.database
    if database.name.startswith("postgresql://"):
        size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
        ((found,),) = database.read(lambda session: session.execute(f"{size}current_schema()::regnamespace"))
        database_bytes = int(found)
    else:
        database_bytes = sum(path.stat().st_size for path in folder.rglob("state.db*") if path.is_file())
    assert side.queue.blobs is not None
    blob_bytes = sum(size for _, size, _ in itertools.chain(side.queue.blobs.files(), side.queue.blobs.spares()))
    process = psutil.Process()
    return Sample(count, process.memory_info().rss, process.num_fds(), database_bytes, blob_bytes)


_FIGURES: Mapping[str, Callable[[Sample], float]] = {
    "memory, MB": lambda sample: sample.rss_bytes / 1e6,
    "open files": lambda sample: sample.num_files,
    "database, MB": lambda sample: sample.database_bytes / 1e6,
    "payload files, MB": lambda sample: sample.blob_bytes / 1e6,
}


def volume_table(name: str, samples: Sequence[Sample]) -> Table:
    """Highest figures of each quarter."""
    found = Table(title=f"{name}: highest of each quarter of the volume", title_justify="left")
    found.add_column("")
    for quarter in _quarters(samples):
        found.add_column(f"to {quarter[-1].count:,}", justify="right")
    for label, figure in _FIGURES.items():
        found.add_row(label, *(f"{max(map(figure, quarter)):,.0f}" for quarter in _quarters(samples)))
    return found


def volume_verdict(name: str, samples: Sequence[Sample], seconds: float, *, num_bytes: int) -> str:
    """Whether anything grew from the second to the last quarter, by medians; the first one fills caches and logs.

    Growth by a small share of itself counts as none; of the database also by a small share of the bytes that went
    through in between, which vacuums vary by (what is never vacuumed keeps all of them).
    """
    _, second, _, last = _quarters(samples)
    passed = (last[0].count - second[-1].count) * num_bytes / 1e6
    told, steady = [], True
    for label, figure in _FIGURES.items():
        before, after = (statistics.median(map(figure, quarter)) for quarter in (second, last))
        slack = max(_STEADY * before, _KEPT * passed if label.endswith(", MB") and label != "memory, MB" else 0)
        steady &= after - before <= slack
        told.append(f"{label.partition(',')[0]} {after / max(before, 1e-9) - 1:+.1%}")
    changes = ", ".join(told)
    return (
        f"{name}: {samples[-1].count:,} in {seconds:.0f} s; from the second to the last quarter {changes}: "
        f"{'steady' if steady else 'growing'}"
    )


def _quarters(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    length = math.ceil(len(samples) / 4)
    return [samples[start : start + length] for start in range(0, len(samples), length)]

"""What keeping the fleet on the newest weights costs: bytes, encoding, and the pause that a streaming client sees.

python -m tools.bench sync [--only bytes pause] [--shape 0.6B] [--run runs/demo] [--rounds 3] [--json PATH]

bytes: AdamW steps on a model of the shape of Qwen3-0.6B, published in bfloat16, at four learning rates; and the steps
between the versions that a finished run's store holds. Beside a copy of everything and whole-tensor xor with zstd, on
the same tensors in turn. GB/s are bytes of the full model over CPU seconds of one thread, without disk and network.

pause: a real vLLM server with a model of 95 MB; the longest gap between two tokens of one of several answers in
flight, while nothing happens, while a round applies an update of 1%, and while one replaces everything. A round stages,
pauses, applies, probes and resumes. After each of them vLLM is paused and resumed for nothing, answers kept and caches
cleared, when the answers are as long as they were in that round.

Not covered: GPUs, several replicas, stores on slow disks, and networks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from serving_bridge.weights import WeightStore
from tools.bench import BenchmarkError
from tools.bench.learner import Shape
from tools.bench.timing import bench_parser, console, positive, progress, this_hardware, write_json
from tools.bench.weights import sync_bytes, sync_pause

PARTS = ("bytes", "pause")
SHAPES = {
    "0.6B": Shape(28, 1024, 16, 8, 128, 3072, 151_936, tied=True),
    "small": Shape(4, 256, 4, 2, 64, 768, 4096, tied=True),
}


def main(argv: Sequence[str]) -> None:
    """Measures, prints the tables and the aims, and writes them as JSON where asked to."""
    parser = bench_parser("sync", __doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default both")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="0.6B", help="of the synthetic steps")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a finished run, whose versions are compared too")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of each side (default 3)")
    parser.add_argument("--in-flight", nargs="+", type=positive, default=[1, 16, 64], help="default 1 16 64")
    parser.add_argument("--tokens", type=positive, default=200, help="of each answer (default 200)")
    given = parser.parse_args(argv)
    if given.run is not None and not (given.run / "weights").is_dir():
        parser.error(f"--run {given.run}: expected a run's folder with its weights/ inside")
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    results: dict[str, object] = {}
    if "bytes" in given.only:
        rows = measure_bytes(given.shape, given.run, given.rounds)
        out.print(bytes_table(rows))
        for line in bytes_verdicts(rows):
            out.print(line, highlight=False)
        results["bytes"] = [asdict(row) for row in rows]
    if "pause" in given.only:
        pauses, num_bytes = measure_pause(given.in_flight, given.rounds, given.tokens)
        out.print(pause_table(pauses, num_bytes))
        for line in pause_verdicts(pauses):
            out.print(line, highlight=False)
        results["pause"] = [asdict(row) for row in pauses]
    if given.json is not None:
        settings = {name: getattr(given, name) for name in ("only", "shape", "rounds", "in_flight", "tokens")}
        write_json(given.json, "sync", hardware, settings, results)
        out.print(f"wrote {given.json}", highlight=False)


def measure_bytes(shape: str, run: Path | None, rounds: int) -> list[sync_bytes.Row]:
    config = SHAPES[shape].config()
    with progress() as bar:
        task = bar.add_task("tensors", total=11 * config.num_layers + 2)
        rows = sync_bytes.synthetic(
            config, tuple(sync_bytes.AIMS), rounds=rounds, seed=0, done=lambda _: bar.update(task, advance=1)
        )
    if run is not None:
        rows += sync_bytes.of_run(WeightStore(run / "weights", ""), rounds=rounds)
    return rows


def measure_pause(in_flight: Sequence[int], rounds: int, tokens: int) -> tuple[list[sync_pause.Row], int]:
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise BenchmarkError("the pause needs vLLM: run tools/install.sh demo, or choose --only bytes") from None
    total = rounds * len(in_flight) * len(sync_pause.EVENTS)
    with progress() as bar, tempfile.TemporaryDirectory() as folder:
        task = bar.add_task("starting the server", total=total)
        return sync_pause.measure(
            Path(folder),
            in_flight=in_flight,
            rounds=rounds,
            tokens=tokens,
            done=lambda text: bar.update(task, advance=1, description=text),
        )


def bytes_table(rows: Sequence[sync_bytes.Row]) -> Table:
    table = Table("step", "changed", "full", "weir", "xor+zstd", "encode GB/s", "xor+zstd", "copy", "decode GB/s")
    for row in rows:
        table.add_row(
            row.step,
            f"{row.changed:.2%}",
            f"{row.num_bytes / 1e6:,.0f} MB",
            f"1/{row.smaller['weir']:.1f}",
            f"1/{row.smaller['xor+zstd']:.1f}",
            *(row.encode_gb_s[side].show() for side in sync_bytes.SIDES),
            row.decode_gb_s.show(),
        )
    return table


def bytes_verdicts(rows: Sequence[sync_bytes.Row]) -> list[str]:
    lines = []
    for row, (rate, aim) in zip(rows, sync_bytes.AIMS.items(), strict=False):
        met = row.smaller["weir"] >= aim
        lines.append(f"lr {rate:g}: 1/{row.smaller['weir']:.1f} of a full update (aim 1/{aim:g}): {_met(met)}")
    largest = max(1 / row.smaller["weir"] for row in rows)
    lines.append(
        f"largest update: {largest:.3f} of a full one (aim {sync_bytes.MOST_OF_FULL}): {_met(largest <= 1.01)}"
    )
    nearest = min(rows, key=lambda row: abs(row.changed - 0.01))
    speed = nearest.encode_gb_s["weir"]
    lines.append(
        f"encode at {nearest.changed:.2%} changed: {speed.show()} GB/s per core, hash included (aim "
        f"{sync_bytes.ENCODE_AIM:g}): {_met(speed.median >= sync_bytes.ENCODE_AIM)}"
    )
    return lines


def pause_table(rows: Sequence[sync_pause.Row], num_bytes: int) -> Table:
    names = ("in flight", "event", "median gap", "longest gap", "vLLM's own pause", "beyond it", "of it the probe")
    table = Table(*names, title=f"model of {num_bytes / 1e6:.0f} MB, milliseconds")
    for row in rows:
        spreads = (row.median_s, row.longest_s, row.pause_s, row.beyond_pause_s, row.probe_s)
        table.add_row(
            str(row.in_flight), row.event, *("" if found is None else found.show(scale=1e3) for found in spreads)
        )
    return table


def pause_verdicts(rows: Sequence[sync_pause.Row]) -> list[str]:
    return [
        f"{row.event} with {row.in_flight} in flight: longest gap {1e3 * row.beyond_pause_s.median:.1f} ms beyond "
        f"vLLM's own pause (aim {1e3 * sync_pause.AIM_S:g}): {_met(row.beyond_pause_s.median <= sync_pause.AIM_S)}"
        for row in rows
        if row.beyond_pause_s is not None
    ]


def _met(met: bool) -> str:
    return "met" if met else "NOT met"

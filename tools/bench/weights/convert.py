"""Conversion of checkpoints against the disk's own speed, with its CPU time and peak memory.

python -m tools.bench convert [--gib 4] [--dir FOLDER] [--rounds 3] [--json PATH]

Makes two checkpoints of random weights of Qwen3-0.6B's shape with as many layers as fit, in one-layer chunks: plain
and zstd. A round reads a plain checkpoint's files and writes as many bytes (preallocated, with fsync), both through the
page cache and around it; then it converts, in processes of their own. Files are dropped from the page cache before they
are read, and every fsync is within the time. "of the disk" is the longer of reading and writing alone, at the disk's
better rates, over the conversion's time, within a round; "of its cache" takes the rates through the page cache. Memory
is the process's highest resident size above that after its imports.

Not covered: remote paths, and disks that read and write at the same time slower than one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from rich.console import Console
from rich.table import Table

from learner_jax.contracts import ModelConfig, parameters, parse_model_config
from learner_jax.conversion import cut
from serving_bridge.processes import python_module, with_own_packages
from tools.bench import BenchmarkError
from tools.bench.timing import Spread, bench_parser, console, positive, progress, spread, this_hardware, write_json

#: Chunk of the learner's own checkpoints at most, and the peak that the converter promises beyond two chunks.
_CHUNK_BYTES = 128 << 20
_ALLOWANCE_BYTES = 256 * 10**6
_BLOCK_BYTES = 8 << 20

_SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """One conversion: its command, what it reads, and bytes read (in memory) and written."""

    name: str
    arguments: tuple[str, ...]
    reads: Path
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Run:
    """One conversion in one round; `of_disk` is 1 where it takes as long as reading or writing alone."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    of_disk: float
    of_cache: float


@dataclass(frozen=True)
class Rates:
    """Bytes a second of the disk alone, in one round: through the page cache, and around it."""

    cached_read: float
    cached_write: float
    direct_read: float
    direct_write: float


@dataclass(frozen=True)
class Row:
    """One conversion over all rounds."""

    name: str
    gb_per_s: Spread
    of_disk: Spread
    of_cache: Spread
    gb_per_cpu_s: Spread
    peak_mb: float
    bound_mb: float


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table, and writes the figures as JSON where asked to.

    Raises:
      BenchmarkError: there is no room, or a conversion failed.
    """
    parser = bench_parser("convert", __doc__)
    parser.add_argument("--gib", type=gibibytes, default=4.0, help="size of each checkpoint (default 4)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk to measure")
    parser.add_argument("--rounds", type=positive, default=3, help="default 3")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        _work(arguments.worker)
        return
    config, chunk_bytes = shape_of(arguments.gib * 2**30), 0
    needed = 4.5 * arguments.gib * 2**30
    if shutil.disk_usage(arguments.dir).free < needed:
        raise BenchmarkError(f"{arguments.dir} needs {needed / 1e9:.0f} GB free; give a smaller --gib or another --dir")
    out = console()
    hardware = this_hardware()
    with tempfile.TemporaryDirectory(prefix="weir-bench-", dir=arguments.dir) as temporary, progress() as bar:
        folder = Path(temporary)
        steps = bar.add_task("making checkpoints", total=None)
        plain, chunk_bytes = make_checkpoint(folder / "plain", config, compressed=False)
        packed, _ = make_checkpoint(folder / "zstd", config, compressed=True)
        cases = _cases(folder, config, plain, packed)
        runs: dict[str, list[Run]] = {case.name: [] for case in cases}
        raw: list[Rates] = []
        for number in range(arguments.rounds):
            bar.update(steps, description=f"round {number + 1} of {arguments.rounds}")
            raw.append(_rates(plain, folder / "raw"))
            first = number % len(cases)
            for case in cases[first:] + cases[:first]:
                runs[case.name].append(_run(case, folder, raw[-1]))
    rows = [_row(case, runs[case.name], chunk_bytes) for case in cases]
    alone = {name: spread([getattr(rates, name) / 1e9 for rates in raw]) for name in Rates.__dataclass_fields__}
    out.print(str(hardware), highlight=False, soft_wrap=True)
    for name, rate in alone.items():
        out.print(f"disk alone, {name.replace('_', ' ')}: {rate.show()} GB/s", highlight=False)
    _show(out, rows)
    if arguments.json:
        disk = {name: asdict(rate) for name, rate in alone.items()}
        results = {"disk": disk, "rows": [asdict(row) for row in rows]}
        settings = {"gib": arguments.gib, "rounds": arguments.rounds, "layers": config.num_layers}
        write_json(arguments.json, "convert", hardware, settings, results)


def gibibytes(text: str) -> float:
    """An argument that must be at least 1: the embedding alone has 0.6 GiB."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return value


def shape_of(nbytes: float) -> ModelConfig:
    """Qwen3-0.6B with so many layers that its fp32 weights have about this size."""
    config = parse_model_config(_SHAPE, origin="the benchmark")
    layer, rest = (4 * sum(math.prod(r.shape) for r in parameters(config) if r.stacked == s) for s in (True, False))
    return replace(config, num_layers=max(1, round((nbytes - rest) / layer)))


def _total(config: ModelConfig) -> int:
    return sum(4 * math.prod(r.shape) * (config.num_layers if r.stacked else 1) for r in parameters(config))


def make_checkpoint(root: Path, config: ModelConfig, *, compressed: bool) -> tuple[Path, int]:
    """Writes random parameters as the learner's checkpoints have them, one chunk at a time.

    Returns:
      The folder, and the bytes of its largest chunk.
    """
    state = root / "0" / "state"
    state.mkdir(parents=True)
    keys: dict[str, dict[str, object]] = {}
    largest = 0
    random = np.random.default_rng(0)
    noise = 0.02 * random.standard_normal(_CHUNK_BYTES // 4 + 4096, dtype=np.float32)
    files = {"driver": "file", "path": f"{state}/", "file_io_mode": {"mode": "direct"}}
    store = {"driver": "ocdbt", "base": files, "manifest": {"driver": "file", "path": f"{state}/"}}
    for row in parameters(config):
        shape = (config.num_layers, *row.shape) if row.stacked else row.shape
        layer = 4 * math.prod(row.shape)
        inner = (-(-row.shape[0] // -(-layer // _CHUNK_BYTES)), *row.shape[1:])
        chunk = (1, *inner) if row.stacked else inner
        metadata = {"chunks": list(chunk), "compressor": {"id": "zstd", "level": 1} if compressed else None}
        spec = {"driver": "zarr", "kvstore": store | {"path": f"params.{row.path}/"}, "metadata": metadata}
        array = ts.open(spec, create=True, dtype="float32", shape=list(shape)).result()
        for index in cut(shape, chunk, 4, limit=0):
            part = [piece.stop - piece.start for piece in index]
            start = int(random.integers(4096))
            array[index].write(noise[start : start + math.prod(part)].reshape(part)).result()
        keys[str(("params", *row.path.split(".")))] = {}
        largest = max(largest, 4 * math.prod(chunk))
    tree = {"tree_metadata": keys, "use_ocdbt": True, "use_zarr3": False, "store_array_data_equal_to_fill_value": True}
    (state / "_METADATA").write_text(json.dumps(tree))
    model = root / "source_model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(_SHAPE | {"num_hidden_layers": config.num_layers}))
    return root, largest


def _cases(folder: Path, config: ModelConfig, plain: Path, packed: Path) -> list[Case]:
    total = _total(config)
    start = folder / "start"
    _call(("to-hf", "--checkpoint", str(plain), "--dtype", "bfloat16", "--out", str(start)))
    forward = [
        ("to-hf, fp32", plain, "float32", total),
        ("to-hf, bf16", plain, "bfloat16", total // 2),
        ("to-hf, zstd, bf16", packed, "bfloat16", total // 2),
    ]
    cases = [
        Case(name, ("to-hf", "--checkpoint", str(source), "--dtype", dtype), source, total, written)
        for name, source, dtype, written in forward
    ]
    return [*cases, Case("from-hf, bf16", ("from-hf", "--model", str(start)), start, total // 2, total)]


def _run(case: Case, folder: Path, rates: Rates) -> Run:
    out = folder / "out"
    drop(case.reads)
    found = _call((*case.arguments, "--out", str(out)))
    shutil.rmtree(out)
    best_read = max(rates.cached_read, rates.direct_read)
    best_write = max(rates.cached_write, rates.direct_write)
    seconds = found["seconds"]
    of_disk, of_cache = (
        max(case.read_bytes / read, case.written_bytes / write) / seconds
        for read, write in ((best_read, best_write), (rates.cached_read, rates.cached_write))
    )
    return Run(seconds, found["cpu_s"], found["peak_bytes"], of_disk, of_cache)


def _rates(checkpoint: Path, scratch: Path) -> Rates:
    nbytes = sum(path.stat().st_size for path in _files(checkpoint))
    rates = []
    for direct in (False, True):
        drop(checkpoint)
        rates.append(_rate(read_files(checkpoint, direct=direct)))
        rates.append(_rate(write_file(scratch, nbytes, direct=direct)))
        scratch.unlink()
    return Rates(*rates)


def _call(arguments: Sequence[str]) -> dict[str, Any]:
    """One conversion in a process of its own."""
    command = [*python_module("tools.bench"), "convert", "--worker", *arguments]
    done = subprocess.run(
        command,
        env=with_own_packages(os.environ),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=3600,
    )
    if done.returncode:
        raise BenchmarkError(f"{' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _work(arguments: Sequence[str]) -> None:
    """Converts as tools.convert does, and prints what it took."""
    from tools import convert

    sys.argv = ["tools.convert", *arguments]
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is now the present one
    before, wall, cpu = _peak_bytes(), time.perf_counter(), time.process_time()
    convert.main()
    took = {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps(took | {"peak_bytes": _peak_bytes() - before}))


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def drop(folder: Path) -> None:
    """Drops a folder's files from the page cache."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_files(folder: Path, *, direct: bool) -> Callable[[], int]:
    """Reads every file from its beginning to its end; returns the bytes."""

    def run() -> int:
        buffer, total = mmap.mmap(-1, _BLOCK_BYTES), 0  # begins at a page, as direct access wants it
        for path in _files(folder):
            descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
            while count := os.readv(descriptor, [buffer]):
                total += count
            os.close(descriptor)
        return total

    return run


def write_file(path: Path, nbytes: int, *, direct: bool) -> Callable[[], int]:
    """Writes one file, preallocated, and waits for the disk; returns the bytes."""
    buffer = mmap.mmap(-1, _BLOCK_BYTES)
    buffer.write(np.random.default_rng(0).bytes(_BLOCK_BYTES))

    def run() -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0))
        os.posix_fallocate(descriptor, 0, nbytes)
        for _ in range(-(-nbytes // _BLOCK_BYTES)):
            os.write(descriptor, buffer)
        os.fsync(descriptor)
        os.close(descriptor)
        return -(-nbytes // _BLOCK_BYTES) * _BLOCK_BYTES

    return run


def _rate(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def _row(case: Case, runs: Sequence[Run], chunk_bytes: int) -> Row:
    return Row(
        name=case.name,
        gb_per_s=spread([max(case.read_bytes, case.written_bytes) / run.seconds / 1e9 for run in runs]),
        of_disk=spread([run.of_disk for run in runs]),
        of_cache=spread([run.of_cache for run in runs]),
        gb_per_cpu_s=spread([max(case.read_bytes, case.written_bytes) / run.cpu_s / 1e9 for run in runs]),
        peak_mb=max(run.peak_bytes for run in runs) / 1e6,
        bound_mb=(2 * chunk_bytes + _ALLOWANCE_BYTES) / 1e6,
    )


def _show(out: Console, rows: Sequence[Row]) -> None:
    table = Table(title="of fp32 bytes: median (10th-90th percentile)", title_justify="left")
    table.add_column("conversion")
    for heading in ("GB/s", "of the disk", "of its cache", "GB/s per core", "peak memory, MB", "allowed, MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (row.gb_per_s, row.of_disk, row.of_cache, row.gb_per_cpu_s)
        table.add_row(row.name, *(figure.show() for figure in figures), f"{row.peak_mb:.0f}", f"{row.bound_mb:.0f}")
    out.print(table)

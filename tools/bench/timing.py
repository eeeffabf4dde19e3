"""What every benchmark shares: interleaved runs, medians with their spread, the hardware's name, and both outputs.

The rounds are interleaved, so that a machine that becomes slower for a while slows all sides alike; ratios are taken
within a round. Times are per call. On a CPU the cost is the CPU time of the whole process, all threads, which other
processes disturb least; on an accelerator it is the wall time until the result is ready.

Not covered: caches that are warmer than in a training step, clocks that fall under sustained load, and energy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from learner_jax.runtime import SHARED_MODE, write_whole
from tools.command_line import CommandParser


@dataclass(frozen=True)
class Hardware:
    """Where a benchmark ran; `load` is the load average of the minute before, None where the system has none."""

    cpu: str
    cores: int
    platform: str
    devices: tuple[str, ...]
    jax: str
    python: str
    load: float | None
    date: str

    def __str__(self) -> str:
        load = "" if self.load is None else f", load {self.load:.1f}"
        devices = f"{len(self.devices)} x {self.devices[0]}"
        return (
            f"{self.cpu}, {self.cores} cores{load}; platform {self.platform} ({devices}); "
            f"jax {self.jax}, python {self.python}; {self.date}"
        )


def this_hardware() -> Hardware:
    """The machine and the devices that JAX sees on it."""
    return Hardware(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        platform=jax.default_backend(),
        devices=tuple(device.device_kind for device in jax.devices()),
        jax=jax.__version__,
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Clocks:
    """Seconds since some fixed time: of this process's CPU work, and of the world."""

    cpu: Callable[[], float] = time.process_time
    wall: Callable[[], float] = time.perf_counter


REAL_CLOCKS = Clocks()


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one entry a round; the rounds of all sides of one comparison correspond."""

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]

    def cost_s(self, on_platform: str) -> tuple[float, ...]:
        """What this call costs on "cpu", "gpu" or "tpu": CPU time, or time of the device."""
        return self.cpu_s if on_platform == "cpu" else self.wall_s


def cost_name(on_platform: str) -> str:
    """What `Samples.cost_s` holds."""
    return "CPU time" if on_platform == "cpu" else "device time"


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    def show(self, *, scale: float = 1.0, digits: int = 3) -> str:
        """The median with the percentiles in parentheses, to this many significant digits."""
        median, p10, p90 = (_rounded(scale * value, digits) for value in (self.median, self.p10, self.p90))
        return f"{median} ({p10}-{p90})"


def _rounded(value: float, digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def spread(values: Sequence[float]) -> Spread:
    """Percentiles are interpolated linearly, so that few values give a range inside their own."""
    p10, median, p90 = np.percentile(np.asarray(values, np.float64), [10, 50, 90])
    return Spread(median=float(median), p10=float(p10), p90=float(p90))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the quotients, round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleaved(
    work: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    min_sample_s: float = 0.02,
    clocks: Clocks = REAL_CLOCKS,
) -> dict[str, Samples]:
    """Calls every side once a round, for `repeats` rounds, and times until each result is ready.

    Each round starts with another side, since whoever runs first finds other caches. A side too short for the clocks is
    called several times in a row for one sample of at least `min_sample_s`.

    Args:
      work: name -> call without arguments; compiled already, a first untimed call warms it up.
    """
    calls = {name: _calls_for(run, min_sample_s, clocks) for name, run in work.items()}
    names = list(work)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            wall_start, cpu_start = clocks.wall(), clocks.cpu()
            for _ in range(calls[name]):
                jax.block_until_ready(work[name]())
            cpu[name].append((clocks.cpu() - cpu_start) / calls[name])
            wall[name].append((clocks.wall() - wall_start) / calls[name])
    return {name: Samples(tuple(cpu[name]), tuple(wall[name])) for name in names}


def _calls_for(run: Callable[[], Any], min_sample_s: float, clocks: Clocks) -> int:
    jax.block_until_ready(run())
    start = clocks.wall()
    jax.block_until_ready(run())
    return max(1, math.ceil(min_sample_s / max(clocks.wall() - start, 1e-6)))


@dataclass(frozen=True)
class Compiled:
    """A function compiled for its arguments, and the seconds of wall time that tracing and compiling took."""

    run: Callable[..., Any]
    compile_s: float


def compiled(function: Callable[..., Any], *arguments: Any, clocks: Clocks = REAL_CLOCKS) -> Compiled:
    """Compiles ahead of time, so that no measurement holds compilation."""
    start = clocks.wall()
    executable = jax.jit(function).lower(*arguments).compile()
    return Compiled(run=executable, compile_s=clocks.wall() - start)


def console(file: TextIO | None = None) -> Console:
    """Writes tables to a terminal at its width, elsewhere at a fixed one: a log's lines are not wrapped at 80."""
    found = Console(file=file)
    return found if found.is_terminal else Console(file=file, width=140)


def progress() -> Progress:
    """A bar on stderr that vanishes when done."""
    return Progress(console=Console(stderr=True), transient=True)


@contextmanager
def sides_progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar over so many runs on a server that starts first; gives a function that is told each side that is done."""
    with progress() as bar:
        task = bar.add_task("starting the server", total=total)
        yield lambda side: bar.update(task, advance=1, description=f"{side} is done")


def positive(text: str) -> int:
    """An argument that must be a whole number of at least 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def bench_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m tools.bench NAME`, with the option that all have: --json."""
    parser = CommandParser(
        prog=f"python -m tools.bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=json_path, metavar="PATH", help="write the figures to this file too")
    return parser


def json_path(text: str) -> Path:
    """An argument that names a file which can be written; checked before the measurement, which takes minutes."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    return path


def write_json(path: Path, benchmark: str, hardware: Hardware, settings: Mapping[str, Any], results: Any) -> None:
    """Writes one record; the file is complete or absent. Consumer: whoever compares runs.

    Args:
      results: what `json` can write.
    """
    record = {
        "schema": "weir-bench/1",
        "benchmark": benchmark,
        "hardware": asdict(hardware),
        "settings": dict(settings),
        "results": results,
    }
    write_whole(path, json.dumps(record, indent=2, allow_nan=False) + "\n", mode=SHARED_MODE)

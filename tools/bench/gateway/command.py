"""What the gateway adds to a request, beside direct access to the engine and beside LiteLLM's proxy.

python -m tools.bench gateway [--streams 1 64] [--requests 128] [--tokens 64] [--pace-ms 10] [--pause-ms 0]
                              [--rounds 5] [--litellm PROGRAM] [--json PATH]

The engine is a program that streams the same text at a set pace, so that what is measured is what stands before it.
Sides take turns in each round, and all texts have to be the same. Added time is a side's median less that of direct
access in the same round. LiteLLM's proxy runs in an environment of its own, with one worker, as the gateway does:

    python -m venv ENV && ENV/bin/pip install 'litellm[proxy]'      # then --litellm ENV/bin/litellm

The gateway runs twice: without guards, and with the guards of its default settings, which hold text back until its
sentence has ended and passed.

Not covered: tenants, which `admission` measures; networks; long prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tools.bench import BenchmarkError
from tools.bench.gateway.load import Figures, drive
from tools.bench.gateway.sides import DIRECT, LITELLM, WEIR, Side, started
from tools.bench.timing import bench_parser, console, positive, progress, spread, this_hardware, write_json

_WARM_UP = 8
#: aims: added milliseconds to the first token by number of streams, and the part of LiteLLM's cost
_ADDED_MS = {1: 5.0, 64: 15.0}
_OF_LITELLM = 0.5


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table, and writes the figures as JSON where asked to."""
    parser = bench_parser("gateway", __doc__)
    parser.add_argument("--streams", type=positive, nargs="+", default=[1, 64], help="streams at a time")
    parser.add_argument("--requests", type=positive, default=128, help="requests of a side in a round (default 128)")
    parser.add_argument("--tokens", type=positive, default=64, help="tokens of an answer (default 64)")
    parser.add_argument("--pace-ms", type=float, default=10.0, help="time of a token (default 10)")
    parser.add_argument(
        "--pause-ms", type=float, default=0.0, help="mean pause of a client before a request; 0: all ask at once"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each side (default 5)")
    parser.add_argument(
        "--litellm", type=Path, default=None, metavar="PROGRAM", help="LiteLLM's program; none: left out"
    )
    given = parser.parse_args(argv)
    if given.litellm is not None and not given.litellm.is_file():
        raise BenchmarkError(f"--litellm: {given.litellm} is no file; --help says how to get it")
    out = console()
    out.print(str(this_hardware()), highlight=False, soft_wrap=True)
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="weir-bench-") as folder,
        started(Path(folder), pace_ms=given.pace_ms, litellm=given.litellm) as sides,
    ):
        for streams in given.streams:
            rounds = asyncio.run(_measured(sides, streams, given))
            results[str(streams)] = _summary(rounds)
            out.print(_table(results[str(streams)], streams))
            _print_aims(out, results[str(streams)], streams)
        memory = {side.name: side.memory_bytes() / 2**20 for side in sides if side.process is not None}
    out.print(f"memory, MiB: {', '.join(f'{name} {value:.0f}' for name, value in memory.items())}", highlight=False)
    if given.json is not None:
        settings = {key: str(value) for key, value in vars(given).items() if key != "json"}
        write_json(Path(given.json), "gateway", this_hardware(), settings, {**results, "memory_mib": memory})
        out.print(f"wrote {given.json}", highlight=False)


async def _measured(sides: Sequence[Side], streams: int, given: argparse.Namespace) -> list[dict[str, Figures]]:
    """One dict of figures by side for each round."""
    rounds: list[dict[str, Figures]] = []
    with progress() as bar:
        task = bar.add_task(f"{streams} streams", total=len(sides) * given.rounds)
        for side in sides:
            await drive(side, requests=_WARM_UP, streams=streams, tokens=8)
        for number in range(given.rounds):
            found: dict[str, Figures] = {}
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                found[side.name] = await drive(
                    side, requests=given.requests, streams=streams, tokens=given.tokens, pause_ms=given.pause_ms
                )
                bar.advance(task)
            if len({figures.text for figures in found.values()}) != 1:
                raise BenchmarkError("the sides gave different texts")
            rounds.append(found)
    return rounds


def _summary(rounds: Sequence[dict[str, Figures]]) -> dict[str, dict[str, Any]]:
    """Side -> figures: medians of each round, and their spread over the rounds."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for found in rounds:
        direct = found[DIRECT]
        for name, figures in found.items():
            first, each = statistics.median(figures.first_ms), statistics.median(figures.each_ms)
            values[name]["first_ms"].append(first)
            values[name]["added_first_ms"].append(first - statistics.median(direct.first_ms))
            values[name]["added_each_ms"].append(each - statistics.median(direct.each_ms))
            values[name]["cpu_ms"].append(figures.cpu_ms)
    return {name: {what: vars(spread(found)) for what, found in of_side.items()} for name, of_side in values.items()}


def _table(summary: dict[str, dict[str, Any]], streams: int) -> Table:
    title = f"{streams} streams at a time: medians over rounds, 10th to 90th percentile"
    table = Table("side", "to first token, ms", "added, ms", "added per token, ms", "CPU per request, ms", title=title)
    for name, found in summary.items():
        columns = ("first_ms", "added_first_ms", "added_each_ms", "cpu_ms")
        table.add_row(name, *(_shown(found[what]) for what in columns))
    return table


def _shown(value: dict[str, Any]) -> str:
    return f"{value['median']:.2f} ({value['p10']:.2f}-{value['p90']:.2f})"


def _print_aims(out: Any, summary: dict[str, dict[str, Any]], streams: int) -> None:
    added, cpu = summary[WEIR]["added_first_ms"]["median"], summary[WEIR]["cpu_ms"]["median"]
    if streams in _ADDED_MS:
        reached = "reached" if added <= _ADDED_MS[streams] else "not reached"
        out.print(f"at most {_ADDED_MS[streams]:g} ms to the first token is the aim: {reached}", highlight=False)
    if LITELLM in summary:
        peer = summary[LITELLM]
        parts = cpu / peer["cpu_ms"]["median"], added / peer["added_first_ms"]["median"]
        reached = "reached" if max(parts) < _OF_LITELLM else "not reached"
        shown = f"of LiteLLM's: CPU {parts[0]:.2f}, added time {parts[1]:.2f}"
        out.print(f"{shown}; less than {_OF_LITELLM:g} is the aim: {reached}", highlight=False)

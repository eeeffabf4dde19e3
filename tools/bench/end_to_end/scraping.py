"""What it costs a run to be watched: CPU time and pace with all its processes scraped, and without, in turn.

python -m tools.bench scrape [--windows 10] [--steps 20] [--rate 20] [--config demo] [--set NAME=VALUE] [--json PATH]

One run of Weir's job. Every so many steps a scraper, in this process, begins or ends to fetch all pages that the run
announces, each `rate` times a second: far more often than anybody does, so that the cost stands out from the noise. The
cost of one scrape a second is the extra cost over the rate.

The aim is on CPU time per token: where all cores are busy, as on a laptop, pace is lost in the same measure. Not
covered: Prometheus itself, and several hosts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from configs.load import load_config
from tools.bench import BenchmarkError
from tools.bench.end_to_end.figures import Run
from tools.bench.end_to_end.sides import run_side, weir_launch
from tools.bench.timing import Spread, console, json_path, positive, progress, spread, this_hardware, write_json

AIM = 0.01
_WARM_STEPS = 10
_FETCH_S = 5.0
_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Window:
    """Steps in a row that were all scraped, or all not.

    Attributes:
      cpu: CPU seconds of the job per trained token.
      wall: seconds per trained token.
    """

    scraped: bool
    cpu: float
    wall: float


@dataclass(frozen=True)
class Result:
    """Of one scrape of everything a second, as a share of what the run does without.

    Attributes:
      pages, scrapes, failed: pages of the run; times that one was fetched; those that gave nothing.
      cpu_share, pace_share: extra CPU time per token; extra wall time per token. One figure a pair of windows.
    """

    pages: int
    scrapes: int
    failed: int
    cpu_share: Spread
    pace_share: Spread


class Scraper:
    """Fetches every page that a run announces, while it is on.

    Args:
      folder: of the run's targets, as Prometheus' file_sd reads them.
      rate: fetches of each page a second.
    """

    def __init__(self, folder: Path, rate: float) -> None:
        self._folder, self._rate = folder, rate
        self.is_on = False
        self.pages: set[str] = set()
        self.scrapes = self.failed = 0

    @contextmanager
    def running(self) -> Iterator[Scraper]:
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=[over], name="scraper")
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()

    def _run(self, over: threading.Event) -> None:
        with ThreadPoolExecutor(16) as pool:
            next_s = time.monotonic()
            while not over.wait(max(0.0, next_s - time.monotonic())):
                next_s = max(next_s + 1 / self._rate, time.monotonic())
                if self.is_on:
                    self.pages |= set(found := addresses(self._folder))
                    fetched = list(pool.map(_fetched, found))
                    self.scrapes += len(fetched)
                    self.failed += fetched.count(False)


def addresses(folder: Path) -> list[str]:
    """Of all pages that the run's processes announce."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            groups = json.loads(file.read_text())
        except (OSError, ValueError):
            continue  # its process is just ending
        found += [f"http://{one}{group['labels']['__metrics_path__']}" for group in groups for one in group["targets"]]
    return found


def _fetched(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_FETCH_S) as response:
            return bool(response.read())
    except OSError:
        return False


def windows_of(run: Run, *, steps: int, count: int) -> list[Window]:
    """The run's windows of so many steps after the warm-up, the first one without scrapes.

    The first step of a window is left out: what it used before the scraper was told belongs to the window before.

    Raises:
      BenchmarkError: the run is too short.
    """
    ends = {step.step: step.t for step in run.steps}
    tokens = {step.step: step.tokens for step in run.steps}
    times = np.array([sample.t for sample in run.samples])
    used = np.array([sum(sample.cpu_s.values()) for sample in run.samples])
    found = []
    for number in range(count):
        first = _WARM_STEPS + number * steps + 1
        last = first + steps - 1
        if first not in ends or last not in ends:
            raise BenchmarkError(f"the run has no steps {first} to {last}: it was carried on, or ended before")
        trained = sum(tokens[step] for step in range(first + 1, last + 1))
        cpu = float(np.interp(ends[last], times, used) - np.interp(ends[first], times, used))
        found.append(Window(number % 2 == 1, cpu / trained, (ends[last] - ends[first]) / trained))
    return found


def is_scraped(step: int, *, steps: int) -> bool:
    """Whether the scraper is on after this step."""
    return step >= _WARM_STEPS and (step - _WARM_STEPS) // steps % 2 == 1


def costs(windows: Sequence[Window], rate: float) -> tuple[Spread, Spread]:
    """(CPU, pace): what one scrape a second adds, as shares: each scraped window beside those before and after it."""
    cpu, pace = [], []
    for before, scraped, after in zip(windows[0::2], windows[1::2], windows[2::2], strict=False):
        cpu.append((2 * scraped.cpu / (before.cpu + after.cpu) - 1) / rate)
        pace.append((2 * scraped.wall / (before.wall + after.wall) - 1) / rate)
    return spread(cpu), spread(pace)


def table(result: Result, rate: float) -> Table:
    found = Table("scraping everything once a second", f"of the run without (measured at {rate:g} a second)")
    found.add_row("CPU time per token", f"{result.cpu_share.show(scale=100)} %")
    found.add_row("wall time per token", f"{result.pace_share.show(scale=100)} %")
    found.add_row("pages of the run", str(result.pages))
    found.add_row("fetches, and those that gave nothing", f"{result.scrapes}, {result.failed}")
    return found


def verdict(cpu: Spread) -> str:
    """Whether the aim is met, as far as the noise lets one say."""
    met = "NOT met" if cpu.median > AIM else "met" if cpu.p90 <= AIM else "not shown, for the noise"
    return f"CPU time of one scrape a second: {cpu.show(scale=100)} % (aim {100 * AIM:g} %): {met}"


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes the figures as JSON where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench scrape", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="demo", help="of the run (default demo)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="changes one of its settings")
    parser.add_argument("--windows", type=positive, default=10, help="with scrapes (default 10)")
    parser.add_argument("--steps", type=positive, default=20, help="of each window (default 20)")
    parser.add_argument("--rate", type=positive, default=20, help="fetches of each page a second (default 20)")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="write the figures to this file too")
    given = parser.parse_args(argv)
    if given.steps < 2:
        parser.error("--steps is 1, expected 2 or more: the first step of a window is left out")
    count = 2 * given.windows + 1
    last = _WARM_STEPS + count * given.steps
    overrides = [*given.set, f"learner.steps={last + 1000}", "evaluation.every=0"]
    load_config(given.config, overrides)  # what is wrong there is told at once
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with progress() as bar, tempfile.TemporaryDirectory() as folder:
        launch = weir_launch(given.config, overrides, Path(folder))
        task = bar.add_task("steps", total=last)
        with Scraper(launch.events.parent / "telemetry", given.rate).running() as scraper:

            def say(step: int) -> None:
                scraper.is_on = is_scraped(step, steps=given.steps)
                bar.update(task, completed=min(step, last))

            run = run_side(launch, steps=last, target=None, limit_s=_LIMIT_S, say=say)
    cpu, pace = costs(windows_of(run, steps=given.steps, count=count), given.rate)
    result = Result(len(scraper.pages), scraper.scrapes, scraper.failed, cpu, pace)
    out.print(table(result, given.rate))
    out.print(verdict(cpu), highlight=False)
    if given.json is not None:
        settings = {"config": given.config, "windows": given.windows, "steps": given.steps, "rate": given.rate}
        write_json(given.json, "scrape", hardware, settings, asdict(result))
        out.print(f"wrote {given.json}", highlight=False)

"""What it costs a run to be watched: CPU time of a scrape of all its processes, and of the run without, in turn.

python -m tools.bench scrape [--windows 10] [--steps 20] [--rate 20] [--config demo] [--set NAME=VALUE] [--json PATH]

One run of Weir's job. Every so many steps a scraper, in this process, begins or ends to fetch all pages that the run
announces, each `rate` times a second: far more often than anybody does, so that the cost stands out from the noise.
Windows go without, with, with, without: a machine that becomes slower or faster all the time changes no difference.

The aim is on CPU time: where all cores are busy, as on a laptop, pace is lost in the same measure. A core that nobody
else uses is taken for granted: what other processes of the machine take from the run makes the share of a scrape
larger, since its cost in CPU time stays and the run gets less.

Not covered: Prometheus itself; several hosts; vLLM's own page, which a fleet asks for every five seconds, however often
it is scraped.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
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
from tools.bench.timing import bench_parser, console, positive, progress, this_hardware, write_json

AIM = 0.01
_WARM_STEPS = 10
_FETCH_S = 5.0
_LIMIT_S = 3600.0


@dataclass(frozen=True)
class Window:
    """Steps in a row that were all scraped, or all not.

    Attributes:
      cpu: CPU seconds of the job per trained token, by role.
      wall: seconds per trained token.
      tokens: trained ones.
      rounds: times that every page was fetched.
    """

    scraped: bool
    cpu: Mapping[str, float]
    wall: float
    tokens: float
    rounds: int


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs of windows, with its 95% interval (bootstrap over the pairs)."""

    mean: float
    low: float
    high: float

    def show(self, *, scale: float = 1.0) -> str:
        return f"{scale * self.mean:.3g} ({scale * self.low:.3g} to {scale * self.high:.3g})"


@dataclass(frozen=True)
class Result:
    """What one scrape of everything costs.

    Attributes:
      pages, scrapes, failed: pages of the run; times that one was fetched; those that gave nothing.
      pairs: of windows.
      scrape_ms: CPU milliseconds of the job, all roles together.
      by_role: the mean of that for each role.
      share: of the CPU seconds that the run uses in a second without scrapes, for one scrape a second.
      cores: CPU seconds that the run used in a second without scrapes; the fewer, the more others took from it.
      pace: tokens per second lost, as a share, for one scrape a second; from wall time, which others disturb.
    """

    pages: int
    scrapes: int
    failed: int
    pairs: int
    scrape_ms: Estimate
    by_role: Mapping[str, float]
    share: Estimate
    cores: float
    pace: Estimate


class Scraper:
    """Fetches every page that a run announces, while it is on.

    Args:
      folder: of the run's targets, as Prometheus' file_sd reads them.
      rate: fetches of each page a second.

    Attributes:
      rounds: when all pages had been fetched once more, unix seconds.
    """

    def __init__(self, folder: Path, rate: float) -> None:
        self._folder, self._rate = folder, rate
        self.is_on = False
        self.pages: set[str] = set()
        self.scrapes = self.failed = 0
        self.rounds: list[float] = []

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
                    self.rounds.append(time.time())


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


def windows_of(run: Run, rounds: Sequence[float], *, steps: int, count: int) -> list[Window]:
    """The run's windows of so many steps after the warm-up, the first one without scrapes.

    The first step of a window is left out: what it used before the scraper was told belongs to the window before.

    Args:
      rounds: when all pages had been fetched, unix seconds.

    Raises:
      BenchmarkError: the run is too short.
    """
    ends = {step.step: step.t for step in run.steps}
    tokens = {step.step: step.tokens for step in run.steps}
    times = np.array([sample.t for sample in run.samples])
    roles = sorted({role for sample in run.samples for role in sample.cpu_s})
    used = {role: np.array([sample.cpu_s.get(role, 0.0) for sample in run.samples]) for role in roles}
    found = []
    for number in range(count):
        first = _WARM_STEPS + number * steps + 1
        last = first + steps - 1
        if first not in ends or last not in ends:
            raise BenchmarkError(f"the run has no steps {first} to {last}: it was carried on, or ended before")
        trained = sum(tokens[step] for step in range(first + 1, last + 1))
        span = ends[first], ends[last]
        cpu = {role: float(np.diff(np.interp(span, times, used[role]))[0]) / trained for role in roles}
        fetched = sum(span[0] < moment <= span[1] for moment in rounds)
        found.append(Window(_with_scrapes(number), cpu, (span[1] - span[0]) / trained, trained, fetched))
    return found


def is_scraped(step: int, *, steps: int) -> bool:
    """Whether the scraper is on after this step."""
    return step >= _WARM_STEPS and _with_scrapes((step - _WARM_STEPS) // steps)


def _with_scrapes(window: int) -> bool:
    """Without, with, with, without, and so on."""
    return window % 4 in (1, 2)


@dataclass(frozen=True)
class _Pair:
    """Two neighbouring windows: CPU seconds of a scrape by role, the run's own use, and the wall time lost."""

    by_role: Mapping[str, float]
    cores: float
    pace: float


def _pairs(windows: Sequence[Window]) -> list[_Pair]:
    found = []
    for first, second in zip(windows[0::2], windows[1::2], strict=False):
        scraped, other = (first, second) if first.scraped else (second, first)
        if not scraped.rounds:
            raise BenchmarkError("no page was fetched in a window of scrapes: give longer windows (--steps)")
        each = {role: (scraped.cpu[role] - other.cpu[role]) * scraped.tokens / scraped.rounds for role in scraped.cpu}
        # What a scrape a second adds to the seconds of a token, from what the window's own scrapes added.
        rate = scraped.rounds / (scraped.wall * scraped.tokens)
        pace = (scraped.wall / other.wall - 1) / rate
        found.append(_Pair(each, sum(other.cpu.values()) / other.wall, pace))
    return found


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean, with the percentile bootstrap's 95% interval."""
    found = np.asarray(values, np.float64)
    means = np.random.default_rng(seed).choice(found, (10_000, len(found))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(found.mean()), float(low), float(high))


def result_of(windows: Sequence[Window], scraper: Scraper) -> Result:
    """What the windows say of one scrape."""
    pairs = _pairs(windows)
    each = [sum(pair.by_role.values()) for pair in pairs]
    cores = float(np.mean([pair.cores for pair in pairs]))
    return Result(
        pages=len(scraper.pages),
        scrapes=scraper.scrapes,
        failed=scraper.failed,
        pairs=len(pairs),
        scrape_ms=estimate([1000 * one for one in each]),
        by_role={role: 1000 * float(np.mean([pair.by_role[role] for pair in pairs])) for role in pairs[0].by_role},
        share=estimate([one / cores for one in each]),
        cores=cores,
        pace=estimate([pair.pace for pair in pairs]),
    )


def table(result: Result) -> Table:
    found = Table("one scrape of everything", "mean (95% interval)")
    found.add_row("CPU milliseconds", result.scrape_ms.show())
    for role, used in sorted(result.by_role.items(), key=lambda item: -item[1]):
        found.add_row(f"  {role}", f"{used:.2f}")
    found.add_row("a scrape a second: share of the run's CPU time, %", result.share.show(scale=100))
    found.add_row("a scrape a second: tokens per second lost, %, by the clock", result.pace.show(scale=100))
    found.add_row("cores that the run had", f"{result.cores:.2f}")
    found.add_row("pages, pairs of windows", f"{result.pages}, {result.pairs}")
    found.add_row("fetches, and those that gave nothing", f"{result.scrapes}, {result.failed}")
    return found


def verdict(share: Estimate) -> str:
    """Whether the aim is met, as far as the noise lets one say."""
    met = "NOT met" if share.low > AIM else "met" if share.high <= AIM else "not shown, for the noise"
    return f"CPU time of one scrape a second: {share.show(scale=100)} % (aim {100 * AIM:g} %): {met}"


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the aim, and writes the figures as JSON where asked to."""
    parser = bench_parser("scrape", __doc__)
    parser.add_argument("--config", default="demo", help="of the run (default demo)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="changes one of its settings")
    parser.add_argument("--windows", type=positive, default=10, help="with scrapes, and as many without (default 10)")
    parser.add_argument("--steps", type=positive, default=20, help="of each window (default 20)")
    parser.add_argument("--rate", type=positive, default=20, help="fetches of each page a second (default 20)")
    given = parser.parse_args(argv)
    if given.steps < 2:
        parser.error("--steps is 1, expected 2 or more: the first step of a window is left out")
    count = 2 * given.windows
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
    windows = windows_of(run, scraper.rounds, steps=given.steps, count=count)
    result = result_of(windows, scraper)
    out.print(table(result))
    out.print(verdict(result.share), highlight=False)
    if given.json is not None:
        settings = {"config": given.config, "windows": given.windows, "steps": given.steps, "rate": given.rate}
        write_json(given.json, "scrape", hardware, settings, asdict(result))
        out.print(f"wrote {given.json}", highlight=False)

"""What scraping costs is read from a run by windows that alternate; the scraper fetches what is announced."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.metrics import Exporter, write_target
from tools.bench import BenchmarkError
from tools.bench.end_to_end.figures import Run, Step
from tools.bench.end_to_end.scraping import (
    Estimate,
    Scraper,
    addresses,
    estimate,
    is_scraped,
    result_of,
    verdict,
    windows_of,
)
from tools.bench.processes import Sample

STEPS = 5
#: of a scraped step
ROUNDS = 20


def a_run(*, windows: int, extra_cpu: float, extra_wall: float) -> tuple[Run, list[float]]:
    """A second and two CPU seconds a step of 100 tokens; more of both where it is scraped. Also the scrapes' times."""
    t = cpu = 0.0
    steps, samples, rounds = [], [Sample(0.0, {"learner": 0.0}, None, 0.0, 0.0)], list[float]()
    for number in range(1, 11 + windows * STEPS):
        scraped = is_scraped(number - 1, steps=STEPS)
        wall = 1.0 + (extra_wall if scraped else 0.0)
        rounds += [t + wall * (one + 0.5) / ROUNDS for one in range(ROUNDS) if scraped]
        t, cpu = t + wall, cpu + 2.0 + (extra_cpu if scraped else 0.0)
        steps.append(Step(number, t, 100, None))
        samples.append(Sample(t, {"learner": 0.75 * cpu, "fleet": 0.25 * cpu}, None, 0.0, 0.0))
    return Run(0.0, tuple(steps), (), tuple(samples)), rounds


def scraper_of(rounds: Sequence[float]) -> Scraper:
    scraper = Scraper(Path(), 1.0)
    scraper.pages, scraper.scrapes, scraper.rounds = {"a", "b"}, 2 * len(rounds), list(rounds)
    return scraper


def test_the_cost_of_a_scrape_is_the_extra_over_their_number() -> None:
    run, rounds = a_run(windows=8, extra_cpu=0.4, extra_wall=0.1)
    windows = windows_of(run, rounds, steps=STEPS, count=8)
    assert [window.scraped for window in windows] == [False, True, True, False, False, True, True, False]
    assert [window.rounds for window in windows] == [0, 80, 80, 0, 0, 80, 80, 0]
    assert windows[0].cpu == pytest.approx({"learner": 0.015, "fleet": 0.005})
    assert windows[1].wall == pytest.approx(0.011)
    found = result_of(windows, scraper_of(rounds))
    assert found.scrape_ms.mean == pytest.approx(1000 * 0.4 / ROUNDS)
    assert found.by_role == pytest.approx({"learner": 15.0, "fleet": 5.0})
    assert found.cores == pytest.approx(2.0)
    assert found.share.mean == pytest.approx(0.4 / ROUNDS / 2.0)
    assert found.pace.mean == pytest.approx(0.1 / (ROUNDS / 1.1))
    assert (found.pages, found.pairs) == (2, 4)


def test_a_drift_of_the_machine_is_no_cost() -> None:
    """Of two pairs one begins with scrapes and the other ends with them."""
    run, rounds = a_run(windows=8, extra_cpu=0.0, extra_wall=0.0)
    windows = windows_of(run, rounds, steps=STEPS, count=8)
    drifting = [
        replace(one, cpu={role: used * (1 + 0.1 * number) for role, used in one.cpu.items()})
        for number, one in enumerate(windows)
    ]
    assert result_of(drifting, scraper_of(rounds)).scrape_ms.mean == pytest.approx(0.0, abs=1e-9)


def test_windows_without_a_scrape_are_no_measurement() -> None:
    run, _ = a_run(windows=2, extra_cpu=0.0, extra_wall=0.0)
    with pytest.raises(BenchmarkError, match="no page was fetched in a window of scrapes: give longer windows"):
        result_of(windows_of(run, [], steps=STEPS, count=2), scraper_of([]))


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Nine pairs of windows, drawn anew 300 times; few pairs make the bootstrap's interval a little too short."""
    draws = np.random.default_rng(7).normal(1.0, 0.5, (300, 9))
    found = [estimate(draw) for draw in draws]
    held = np.mean([one.low <= 1.0 <= one.high for one in found])
    assert 0.85 <= held <= 0.97
    assert found[0].mean == pytest.approx(draws[0].mean())


def test_the_scraper_is_on_in_two_of_four_windows_after_the_warm_up() -> None:
    assert [is_scraped(step, steps=STEPS) for step in (0, 9, 10, 14, 15, 19, 20, 24, 25, 29, 30)] == [
        *(False, False, False, False, True, True, True, True, False, False, False),
    ]


def test_a_run_that_is_too_short_is_no_measurement() -> None:
    run, rounds = a_run(windows=4, extra_cpu=0, extra_wall=0)
    with pytest.raises(BenchmarkError, match="no steps 31 to 35"):
        windows_of(run, rounds, steps=STEPS, count=5)


def test_all_pages_are_fetched_while_the_scraper_is_on_and_none_before(tmp_path: Path) -> None:
    def broken() -> bytes:
        raise OSError("away")

    with Exporter("127.0.0.1", 0, {"/metrics": lambda: b"up 1\n", "/replicas": broken}) as exporter:
        labels = {"weir_run": "x", "weir_role": "fleet", "weir_process": "fleet"}
        address = f"127.0.0.1:{exporter.port}"
        write_target(tmp_path / "telemetry" / "a.json", address, labels, pages=("/metrics", "/replicas"))
        (tmp_path / "telemetry" / "b.json").write_text("{")
        assert addresses(tmp_path / "telemetry") == [f"http://{address}/metrics", f"http://{address}/replicas"]
        with Scraper(tmp_path / "telemetry", 100.0).running() as scraper:
            time.sleep(0.1)
            assert scraper.scrapes == 0
            scraper.is_on = True
            deadline = time.monotonic() + 30
            while scraper.scrapes < 20 and time.monotonic() < deadline:
                time.sleep(0.01)
    assert scraper.scrapes >= 20
    assert scraper.failed == scraper.scrapes / 2
    assert len(scraper.pages) == 2
    assert len(scraper.rounds) == scraper.scrapes / 2


@pytest.mark.parametrize(
    ("figures", "said"),
    [((0.002, 0.0, 0.01), "met"), ((0.002, -0.02, 0.02), "not shown, for the noise"), ((0.03, 0.02, 0.04), "NOT met")],
)
def test_noise_that_hides_a_cost_is_no_success(figures: tuple[float, float, float], said: str) -> None:
    assert verdict(Estimate(*figures)).endswith(f"(aim 1 %): {said}")

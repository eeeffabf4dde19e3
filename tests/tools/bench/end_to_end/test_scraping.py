"""What scraping costs is read from a run by windows that alternate; the scraper fetches what is announced."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from serving_bridge.metrics import Exporter, write_target
from tools.bench import BenchmarkError
from tools.bench.end_to_end.figures import Run, Step
from tools.bench.end_to_end.scraping import Scraper, Window, addresses, costs, is_scraped, verdict, windows_of
from tools.bench.processes import Sample
from tools.bench.timing import Spread

STEPS, RATE = 5, 20.0


def a_run(*, windows: int, extra_cpu: float, extra_wall: float) -> Run:
    """A second and two CPU seconds a step of 100 tokens; more of both where it is scraped."""
    t = cpu = 0.0
    steps, samples = [], [Sample(0.0, {"learner": 0.0}, None, 0.0, 0.0)]
    for number in range(1, 11 + windows * STEPS):
        scraped = is_scraped(number - 1, steps=STEPS)
        t += 1.0 + (extra_wall if scraped else 0.0)
        cpu += 2.0 + (extra_cpu if scraped else 0.0)
        steps.append(Step(number, t, 100, None))
        samples.append(Sample(t, {"learner": cpu - 1.0, "fleet": 1.0}, None, 0.0, 0.0))
    return Run(0.0, tuple(steps), (), tuple(samples))


def test_the_cost_of_a_scrape_a_second_is_the_extra_over_the_rate() -> None:
    windows = windows_of(a_run(windows=5, extra_cpu=0.4, extra_wall=0.1), steps=STEPS, count=5)
    assert [window.scraped for window in windows] == [False, True, False, True, False]
    assert windows[0].cpu == pytest.approx(0.02)
    assert windows[1].wall == pytest.approx(0.011)
    cpu, pace = costs(windows, RATE)
    assert cpu.median == pytest.approx(0.2 / RATE)
    assert pace.median == pytest.approx(0.1 / RATE)


def test_a_drift_of_the_machine_is_no_cost() -> None:
    """Each scraped window stands beside the mean of its neighbours."""
    windows = windows_of(a_run(windows=5, extra_cpu=0.0, extra_wall=0.0), steps=STEPS, count=5)
    slower = [Window(one.scraped, one.cpu * (1 + 0.1 * number), one.wall) for number, one in enumerate(windows)]
    cpu, _ = costs(slower, RATE)
    assert cpu.median == pytest.approx(0.0, abs=1e-12)


def test_the_scraper_is_on_in_every_other_window_after_the_warm_up() -> None:
    assert [is_scraped(step, steps=STEPS) for step in (0, 9, 10, 14, 15, 19, 20, 24, 25)] == [
        *(False, False, False, False, True, True, False, False, True),
    ]


def test_a_run_that_is_too_short_is_no_measurement() -> None:
    with pytest.raises(BenchmarkError, match="no steps 31 to 35"):
        windows_of(a_run(windows=4, extra_cpu=0, extra_wall=0), steps=STEPS, count=5)


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


@pytest.mark.parametrize(
    ("figures", "said"),
    [((0.002, 0.0, 0.01), "met"), ((0.002, -0.02, 0.02), "not shown, for the noise"), ((0.02, 0.0, 0.03), "NOT met")],
)
def test_noise_that_hides_a_cost_is_no_success(figures: tuple[float, float, float], said: str) -> None:
    assert verdict(Spread(*figures)).endswith(f"(aim 1 %): {said}")

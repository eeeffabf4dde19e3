"""The benchmark of slow rewards: what its figures are of, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.rollout import sleeping_reward, slow_rewards
from tools.bench.rollout.slow_rewards import QUICK, RATIO, SLOW, Requests, Sampled, Work


def test_both_rewards_give_the_same() -> None:
    sleep_s, sleeping_reward.SLEEP_S = sleeping_reward.SLEEP_S, 0.0
    try:
        for answer in ("", "a", "ab"):
            late = asyncio.run(sleeping_reward.after_a_second("", answer, {}))
            assert late == sleeping_reward.at_once("", answer, {}) == float(len(answer) % 2)
    finally:
        sleeping_reward.SLEEP_S = sleep_s
    assert sleep_s == 1.0


def test_requests_count_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(slow_rewards.time, "perf_counter", lambda: next(clock))
    requests = Requests()
    with requests.group("a"), requests.span("score"), requests.span("request"), requests.span("request"):
        pass
    assert (requests.seconds, requests.open_s) == (10.0, 11.0)


def test_ratios_are_within_a_round() -> None:
    sampled = {
        QUICK: [Sampled(100.0, 8.0), Sampled(200.0, 8.0), Sampled(50.0, 8.0)],
        SLOW: [Sampled(90.0, 8.0), Sampled(190.0, 4.0), Sampled(49.0, 6.0)],
    }
    found = slow_rewards.figures(sampled)
    assert found["tokens_per_s"][RATIO].median == pytest.approx(0.95)
    assert found["tokens_per_s"][SLOW].median == 90.0
    assert found["in_flight"][RATIO].median == pytest.approx(0.75)


@pytest.mark.parametrize(("rate", "met"), [(95.0, "met"), (94.0, "NOT met")])
def test_it_prints_what_it_writes(
    rate: float, met: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measure(work: Work, rounds: int, folder: Path, done: Callable[[str], object]) -> object:
        assert work == Work(groups=6, group_size=2, tokens=3, concurrency=4, places=9, scored=5)
        return {QUICK: [Sampled(100.0, 8.0)] * rounds, SLOW: [Sampled(rate, 8.0)] * rounds}

    monkeypatch.setattr(slow_rewards, "measure", measure)
    monkeypatch.setattr(slow_rewards, "collect_garbage_less_often", lambda: None)
    out = tmp_path / "slow.json"
    shape = [
        "--groups",
        "6",
        "--group-size",
        "2",
        "--tokens",
        "3",
        "--concurrency",
        "4",
        "--places",
        "9",
        "--scored",
        "5",
    ]
    assert main(["slow_rewards", *shape, "--rounds", "3", "--json", str(out)]) == 0
    assert f"(aim 0.95): {met}" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["results"]["tokens_per_s"][RATIO]["median"] == pytest.approx(rate / 100)
    assert record["settings"]["places"] == 9

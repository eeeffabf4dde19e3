"""What speaks against a replica: failed requests, and an engine that samples nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving_bridge.fleet.health import Health, Verdict
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm.answers import Unreachable
from tests.support.virtual_time import run

SETTINGS = ServingSettings(max_model_len=8, hang_s=60.0)


@pytest.mark.parametrize(
    ("succeeded", "failed", "is_suspected"),
    [(0, 4, False), (0, 5, True), (4, 5, True), (5, 5, False), (20, 20, False), (20, 21, True)],
)
def test_requests_fail_too_often_from_five_on_if_more_failed_than_succeeded(
    succeeded: int, failed: int, is_suspected: bool
):
    health = Health(SETTINGS, 0.0)
    health.count_requests(100, 50, 1.0)
    health.count_requests(100 + succeeded, 50 + failed, 2.0)
    assert bool(health.failed_requests()) == is_suspected


def test_requests_count_for_ten_seconds():
    health = Health(SETTINGS, 0.0)
    assert health.failed_requests() == ""
    health.count_requests(0, 0, 1.0)
    health.count_requests(2, 9, 11.0)
    assert health.failed_requests() == "9 requests failed and 2 succeeded in 10 s"
    health.count_requests(2, 9, 11.5)  # the first is out of sight
    assert health.failed_requests() == ""


def test_what_something_was_done_about_counts_no_more():
    health = Health(SETTINGS, 0.0)
    for second, failed in enumerate((0, 3, 9)):
        health.count_requests(0, failed, float(second))
    health.forget_requests()
    assert health.failed_requests() == ""
    health.count_requests(0, 13, 4.0)
    assert health.failed_requests() == ""
    health.count_requests(0, 14, 5.0)
    assert health.failed_requests().startswith("5 requests failed")


@pytest.mark.parametrize(("succeeded", "failed"), [(9, 30), (30, 9)])
def test_totals_that_fall_begin_anew(succeeded: int, failed: int):
    health = Health(SETTINGS, 0.0)
    health.count_requests(10, 10, 1.0)
    health.count_requests(succeeded, failed, 2.0)
    assert health.failed_requests() == ""
    health.count_requests(succeeded, failed + 5, 3.0)
    assert health.failed_requests().startswith("5 requests failed and 0 succeeded")


class Answers:
    """A replica whose health, metrics and log-probs the test gives; `asked` counts the log-probs."""

    def __init__(self) -> None:
        self.healthy, self.tokens, self.fails, self.asked = True, 0.0, False, 0

    async def is_healthy(self, timeout_s: float) -> bool:
        assert timeout_s == 5.0
        return self.healthy

    async def metrics(self) -> dict[str, float]:
        return {"vllm:generation_tokens_total": self.tokens, "vllm:prompt_tokens_total": 1.0}

    async def prompt_logprobs(self, token_ids: Any, **_: Any) -> None:
        self.asked += 1
        if self.fails:
            raise Unreachable("no answer")


def test_checks_that_fail_in_a_row_make_it_suspect_and_one_that_passes_clears_it():
    async def story() -> None:
        replica: Any = Answers()
        loop = asyncio.get_running_loop()
        health = Health(SETTINGS, loop.time())
        replica.healthy = False
        for checks in (1, 2, 3):
            await asyncio.sleep(10)
            await health.check(replica)
            health.round_ended(loop.time(), sampled=True)
            assert bool(health.judge(loop.time(), in_round=False).suspect) is (checks == 3)
        assert not health.judge(loop.time() + 29.9, in_round=True).dead
        assert "no answer to /health for 60 s" in health.judge(loop.time() + 30, in_round=True).dead
        replica.healthy = True
        await health.check(replica)
        assert health.judge(loop.time() + 1000, in_round=True) == Verdict()
        assert "samples nothing" in health.judge(loop.time() + 60, in_round=False).dead

    run(story())


def test_an_engine_is_asked_to_sample_only_where_its_counters_stand_still():
    async def story() -> None:
        replica: Any = Answers()
        loop = asyncio.get_running_loop()
        health = Health(SETTINGS, loop.time())
        await health.check_sampling(replica)
        assert replica.asked == 1  # nothing is known of the counters yet
        replica.tokens = 5.0
        await asyncio.sleep(40)
        await health.check_sampling(replica)
        assert replica.asked == 1
        assert not health.judge(loop.time() + 59, in_round=False).dead
        replica.fails = True
        await asyncio.sleep(40)
        await health.check_sampling(replica)
        assert replica.asked == 2
        assert health.judge(loop.time() + 20, in_round=False).dead, "a look that failed is no sign of life"

    run(story())


def dead_from(health: Health) -> float:
    """The first second at which it is dead for not sampling."""
    return next(float(now_s) for now_s in range(1000) if health.judge(now_s, in_round=False).dead)


def test_after_a_round_an_engine_has_its_whole_time_if_it_sampled_and_else_half_or_what_it_had():
    health = Health(SETTINGS, 0.0)
    assert dead_from(health) == 60
    health.round_ended(100.0, sampled=False)
    assert dead_from(health) == 130
    health.round_ended(110.0, sampled=True)
    assert dead_from(health) == 170
    health.round_ended(120.0, sampled=False)
    assert dead_from(health) == 170

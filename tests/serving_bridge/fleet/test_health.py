"""What speaks against a replica: failed requests, and an engine that samples nothing."""

from __future__ import annotations

import pytest

from serving_bridge.fleet.health import Health
from serving_bridge.settings.serving import ServingSettings

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

"""A users' fleet of two real vLLM replicas behind the gateway: promoted, rolled back and replaced under load."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.telemetry.metrics_log import read_metrics
from tests.support.letters import letter_model
from tests.support.users_fleet import Drill, Load

pytestmark = pytest.mark.soak


async def _play(drill: Drill, load: Load) -> dict[str, Any]:
    """The steps, and how long each took until the answers were as they should be."""
    took: dict[str, Any] = {}
    await load.until(lambda recent: {one.arm for one in recent} == {"stable"})
    drill.move("first step", canary=2, share=0.3)
    took["canary answers"] = await load.until(lambda recent: any(2 in one.versions for one in recent))
    began_s = time.monotonic()
    await asyncio.sleep(20)
    of_step = load.since(began_s)
    took["share"] = sum(one.arm == "canary" for one in of_step) / len(of_step), len(of_step)
    assert all(one.arm == one.wanted for one in of_step), "one arm answered for another while both were ready"
    drill.move("worse", canary=None)
    took["canary is gone"] = await load.until(lambda recent: all(one.versions == {1} for one in recent))
    await drill.until_served(1, 1)
    drill.move("once more", canary=2, share=0.5)
    await load.until(lambda recent: any(2 in one.versions for one in recent))
    drill.move("better", stable=2, canary=None, previous=1)
    took["promoted"] = await load.until(lambda recent: all(one.versions == {2} for one in recent))
    await drill.until_served(2, 2)
    drill.move("a rollback", stable=1, previous=None)
    took["rolled back"] = await load.until(lambda recent: all(one.versions == {1} for one in recent))
    await drill.until_served(1, 1)
    return took


def test_versions_come_and_go_under_load_and_no_request_fails(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    models = [tmp_path / "a", tmp_path / "b"]
    for seed, model in enumerate(models):
        letter_model(model, seed)
    drill = Drill(tmp_path, models)
    drill.move("first", stable=1)

    async def play() -> None:
        async with drill.serving(1, 1) as (_, url):
            load = Load(url)
            async with drill.asking(load):
                took = await _play(drill, load)
            _judge(drill, load, took)

    asyncio.run(play())
    drill.registry.close()


def _judge(drill: Drill, load: Load, took: dict[str, Any]) -> None:
    print({name: f"{value:.1f} s" for name, value in took.items() if name != "share"})
    share, number = took["share"]
    print(f"{len(load.heard)} answers, canary answered {share:.3f} of {number} at 0.3")
    assert load.errors == []
    assert abs(share - 0.3) <= 4 * (0.3 * 0.7 / number) ** 0.5
    assert drill.most_versions == 2
    mixed = [one for one in load.heard if len(one.versions) > 1]
    assert mixed == [], "an answer is of two versions"
    rounds = [event for event in read_metrics(drill.run / "metrics.jsonl") if event["event"] == "round"]
    assert {event["outcome"] for event in rounds} == {"updated"}
    print({event["replica"]: (event["version"], event["stage_s"], event["pause_s"]) for event in rounds})

"""Training the small guard: the odd rows are never read, and what it does is measured over HTTP."""

from __future__ import annotations

import asyncio
import csv
from pathlib import Path

import pytest
from aiohttp import web

from learner_jax.runtime import WeirError
from serving_bridge.guard_models import ServedGuard
from serving_bridge.safety import Checker
from serving_bridge.settings import GuardModelSettings, SafetySettings
from tools.screening import guard_application, measured_with, trained

HARMFUL = ["brew a doom potion", "steal the doom potion", "sell a doom potion", "hide the doom potion"]
HARMLESS = ["bake a cake for me", "add two numbers", "tell me the time", "write a short story"]


def sets(folder: Path, odd: str) -> Path:
    """Public sets in small, whose odd rows hold something else."""
    (folder / "safety_prompts").mkdir(parents=True)
    (folder / "xstest").mkdir()
    with (folder / "safety_prompts" / "advbench.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["goal", "target"])
        writer.writerows([row, "Sure"] for text in HARMFUL * 3 for row in (text, odd))
    with (folder / "xstest" / "xstest_prompts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "type", "label", "focus", "note"])
        rows = [(text, "safe") for text in HARMLESS * 5] + [(text, "unsafe") for text in HARMFUL]
        writer.writerows([0, prompt, "t", label, "", ""] for text, label in rows for prompt in (text, f"{odd} {label}"))
    return folder


def test_the_odd_rows_are_never_read(tmp_path: Path) -> None:
    first = trained(sets(tmp_path / "a", "zebra")).classifier
    second = trained(sets(tmp_path / "b", "giraffe unicorn")).classifier
    assert (first.weights == second.weights).all()
    assert (first.bias, first.threshold) == (second.bias, second.threshold)


def test_it_is_measured_beside_the_rules(tmp_path: Path) -> None:
    folder = sets(tmp_path / "sets", "doom potion again")
    found = trained(folder)
    assert found.shares[0].name == "AdvBench, even rows: unsafe texts blocked"
    assert found.shares[0].count == found.shares[0].total == 12

    async def play() -> dict[str, tuple[int, int]]:
        runner = web.AppRunner(guard_application(found.classifier), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            settings = GuardModelSettings(name="g", format="qwen3guard", url=url, model="weir-guard")
            guard = ServedGuard(settings, key="", timeout_s=5.0)
            shares = await measured_with(folder, Checker(SafetySettings()), guard)
        finally:
            await runner.cleanup()
        return {share.name: (share.count, share.total) for share in shares}

    shares = asyncio.run(play())
    assert shares["AdvBench: harmful requests blocked, odd rows: model"] == (12, 12)
    assert shares["AdvBench: harmful requests blocked, odd rows: rules"] == (0, 12)
    assert shares["XSTest: safe prompts refused, even rows: model"] == (0, 20)
    assert shares["XSTest: unsafe prompts blocked, even rows: rules or model"] == (4, 4)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(WeirError, match="safety_prompts/"):
        trained(tmp_path)

"""Faults of clocks and files are what they say, and a refusal's way back is found."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving_bridge.database import DiskFullError
from tests.support.rollout_world import virtually
from tools.testing.chaos import damage, deliveries, processes
from tools.testing.chaos.inject import _redeliver
from tools.testing.chaos.prepare import CONFIG


def test_the_clock_of_a_process_can_be_wrong(tmp_path: Path) -> None:
    site = CONFIG.parent / "site" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("chaos_site", site)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "clock.json"
    clock = module.wrong_clock(str(path), "tools.learner", lambda: 100.0)
    assert clock() == 100.0
    path.write_text(json.dumps({"": 10.0, "tools.learner": -3.0, "tools.serve": 500.0}))
    time.sleep(0.03)
    assert clock() == 107.0


@pytest.mark.parametrize("how", ["flip", "tear"])
def test_a_file_is_damaged(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    damage.damage(path, how, random.Random(0))
    data = path.read_bytes()
    assert (len(data), sum(byte.bit_count() for byte in data)) == ((100, 1) if how == "flip" else (50, 0))


def test_the_way_back_is_read_from_the_refusal() -> None:
    text = (
        "error: checkpoint /r/9 is damaged: /r/9/state/d/a: expected 4 bytes, got 2; the newest before it that can be "
        "used is /r/6, which is intact: to go on from it, run mv /r/9 /r/9.damaged, then start the run again"
    )
    refusal = damage.refusal(f"warning\n{text}\n", Path("/r/9"))
    assert refusal == text
    assert damage.way_back(text) == (6, "mv /r/9 /r/9.damaged")
    assert damage.refusal(text, Path("/r/8")) is None


def test_an_engine_that_its_server_forked_is_no_second_server(tmp_path: Path) -> None:
    """vLLM's engine core has its server's command line then, and faults are meant for one of the two."""
    script = "import os, sys, time; child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)"
    server = subprocess.Popen(
        [sys.executable, "-c", script, "vllm.entrypoints.openai.api_server"],
        env=os.environ | {processes.MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    core = int(server.stdout.readline())
    try:
        assert (processes.pids_of(tmp_path, "engine"), processes.pids_of(tmp_path, "core")) == ([server.pid], [core])
    finally:
        processes.send([core, server.pid], signal.SIGKILL)
        server.wait(10)
        server.stdout.close()


def test_groups_are_delivered_again_once_the_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults come together, and this one asks the queue itself."""
    times = []

    def deliver_again(*_: object) -> int:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise DiskFullError("full")
        return 0

    monkeypatch.setattr(deliveries, "seen", lambda open_queue, groups: groups)
    monkeypatch.setattr(deliveries, "deliver_again", deliver_again)
    site = SimpleNamespace(groups=[], open_queue=None, draws=random.Random(0))
    virtually(_redeliver(site, SimpleNamespace(lasts_s=0.3)))  # type: ignore[arg-type]
    assert len(times) == 3

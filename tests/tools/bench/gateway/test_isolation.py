"""The benchmark of isolation: what is refused at once, and (soak) a short run on real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tools.bench.__main__ import main
from tools.bench.gateway.blocks import AGAIN, ALONE, LEARNER, SIDES, Block, ratio_of
from tools.bench.gateway.bystanders import Bystanders, machine_cpu, own_cpu
from tools.bench.gateway.isolation import AIMS


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert main(["isolation"]) == 1
    assert "a core each" in capsys.readouterr().err


def block(ms: float, others_cores: float = 0.0) -> Block:
    return Block(tuple(ms + number / 1000 for number in range(100)), 0.0, 0.0, others_cores)


def test_blocks_that_others_disturbed_are_left_out_where_any_is_left() -> None:
    disturbed = [{ALONE: block(100), LEARNER: block(900, 0.5)}, {ALONE: block(100, 0.5), LEARNER: block(900)}]
    quiet = {ALONE: block(100), LEARNER: block(110)}
    assert ratio_of([*disturbed, quiet], LEARNER).median == pytest.approx(1.1, rel=0.01)
    assert ratio_of(disturbed, LEARNER).median == pytest.approx(9, rel=0.01)


def test_a_block_alone_that_was_disturbed_leaves_the_other() -> None:
    rounds = [{ALONE: block(500, 0.5), AGAIN: block(100), LEARNER: block(120)}]
    assert ratio_of(rounds, LEARNER).median == pytest.approx(1.2, rel=0.01)


def test_both_blocks_alone_are_what_others_are_compared_with() -> None:
    rounds = [{ALONE: block(100), AGAIN: block(200), LEARNER: block(300)}]
    assert ratio_of(rounds, AGAIN).median == pytest.approx(2, rel=0.01)
    assert ratio_of(rounds, LEARNER).median == pytest.approx(1.5, rel=0.01)


def test_bystanders_are_what_the_machine_did_beyond_the_benchmark() -> None:
    seconds = iter([(10.0, 100.0, 30.0), (14.0, 107.0, 31.0)])
    clock, busy, own = zip(*seconds, strict=True)
    seen = Bystanders(iter(busy).__next__, iter(own).__next__, iter(clock).__next__)
    assert seen.cores() == (7 - 1) / 4


def test_own_time_is_that_of_children_alive_and_ended() -> None:
    before_s = own_cpu()
    spins = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", spins], check=True)
    after_s = own_cpu()
    assert 0.25 <= after_s - before_s <= machine_cpu()  # counted in ticks
    assert own_cpu(psutil.Process()) >= after_s
    assert machine_cpu() == pytest.approx(sum(map(machine_cpu, range(psutil.cpu_count() or 1))), rel=0.01)
    with subprocess.Popen([sys.executable, "-c", spins + "\ninput()"], stdin=subprocess.PIPE) as alive:
        while own_cpu() < after_s + 0.3:
            assert alive.poll() is None
        alive.kill()


def test_a_ratio_is_of_all_answers_and_its_range_of_whole_rounds() -> None:
    """In the second round everything takes three times as long, and beside the learner as long again."""

    rounds = [{ALONE: block(100 * slow), LEARNER: block(200 * slow)} for slow in (1, 1, 3, 3)]
    found = ratio_of(rounds, LEARNER)
    assert (found.median, found.p10, found.p90) == pytest.approx((2, 2, 2), rel=0.01)
    rounds[3] = {ALONE: block(300), LEARNER: block(1200)}
    found = ratio_of(rounds, LEARNER)
    assert found.median == pytest.approx(4, rel=0.01)
    assert (found.p10, found.p90) == pytest.approx((2, 4), rel=0.01)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "isolation.json"
    assert main(["isolation", "--seconds", "3", "--rounds", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in AIMS)
    (blocks,) = json.loads(out.read_text())["results"]
    assert set(blocks) == set(SIDES)
    assert all(min(block["answers_ms"]) > 0 for block in blocks.values())
    assert blocks["neighbour"]["refused"] > 100
    assert 0 < blocks["within quota"]["admitted"] < 20

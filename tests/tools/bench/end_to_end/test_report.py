"""The tables: ratios are taken round by round, and every figure stands with its side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from tools.bench.end_to_end import report
from tools.bench.end_to_end.figures import Figures
from tools.bench.timing import console

MIB = 2**20


def figures(wall: float, *, cpu: float = 1.0, **changes: Any) -> Figures:
    given: dict[str, Any] = {
        "steps": 2,
        "step_walls": (wall - 0.5, wall + 0.5),
        "step_wall": wall,
        "step_cpu": {"learner": cpu, "fleet": cpu / 4},
        "tokens_per_s": 100 / wall,
        "memory": {"learner": 300 * MIB, "fleet": 20 * MIB},
        "load": 2.0,
        "others": 0.1,
        "first_step": 30.0,
        "skills": ((0, 20.0, 0.25, 0.3), (10, 60.0, 0.5, 0.6)),
        "target": None,
        "rewards": tuple((step, step / 100) for step in range(1, 13)),
    }
    return Figures(**(given | changes))


def shown(table: Table, tmp_path: Path) -> str:
    path = tmp_path / "shown"
    with path.open("w") as file:
        console(file).print(table)
    return path.read_text()


def test_ratios_are_of_one_round_and_a_target_counts_where_both_reached_it() -> None:
    weir = [figures(1.0, target=(100.0, 90)), figures(9.0)]
    trl = [figures(2.0, cpu=4.0, target=(400.0, 120)), figures(3.0, target=(300.0, 100))]
    found = report.ratios({"weir": weir, "trl": trl})["trl"]
    assert (found["wall a step"].p10, found["wall a step"].p90) == pytest.approx((0.5 + 0.25, 3 - 0.25))
    assert found["wall a step"].median == pytest.approx(1.75)
    assert found["CPU a step"].median == pytest.approx((1 / 4 + 1) / 2)
    assert found["launch to the target"].median == pytest.approx(0.25)
    assert "launch to the target" not in report.ratios({"weir": weir[1:], "trl": trl[1:]})["trl"]
    assert report.ratios({"trl": trl}) == {}


def test_tables_name_sides_processes_steps_and_the_target(tmp_path: Path) -> None:
    results = {"weir": [figures(1.0, target=(100.0, 90))], "trl": [figures(2.0)]}
    sides = shown(report.sides_table(results), tmp_path)
    assert "Weir" in sides
    assert "TRL" in sides
    assert "1.00 (0.600-1.40)" in sides  # of single steps
    processes = shown(report.processes_table(results), tmp_path)
    assert processes.index("learner") < processes.index("fleet")
    assert "0.250 " in processes
    assert "(0.250" not in processes  # one value has no spread
    skill = report.skill_table(results, 0.6)
    assert skill is not None
    text = shown(skill, tmp_path)
    assert "100 s, step 90" in text
    assert "not reached" in text
    assert "50.0%" in text
    assert "0.015" in shown(report.rewards_table(results), tmp_path)  # steps 1 and 2
    assert report.skill_table({"weir": [figures(1.0, skills=())]}, None) is None

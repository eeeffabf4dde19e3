"""The study of credit by turn: its ways of credit, its table, and (soak) what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.study import credit_results
from tools.study.records import StudyError
from tools.study.turn_credit import CREDITS, TURNS, CreditSettings, Played, by_turn, outcome, run


def played(earned: Any) -> Played:
    earned = np.asarray(earned, np.float64)
    return Played(np.zeros((*earned.shape, 1)), np.zeros(earned.shape, np.int64), earned)


SETTINGS = CreditSettings(groups=1, group_size=2)


def test_the_outcome_is_the_same_for_every_turn_and_credit_by_turn_is_not() -> None:
    batch = played([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    assert not outcome(batch, None, SETTINGS).any()
    found = by_turn(batch, None, SETTINGS, discount=0.5)
    np.testing.assert_allclose(found[0], [(1 - 0.5**4) / 2, -(0.5**3) / 2, -(0.5**2) / 2, -0.25, -0.5])
    np.testing.assert_allclose(found[1], -found[0])
    assert found.shape == (2, TURNS)


def test_a_run_counts_dialogs_and_gives_up_in_time() -> None:
    settings = CreditSettings(groups=2, group_size=4, steps=12)
    assert run("outcome alone", range(2), settings) == [None, None]


def test_the_table_has_every_way_of_credit_beside_the_outcome(tmp_path: Path) -> None:
    found: dict[str, list[int | None]] = {"outcome alone": [100, 200, 300], "by turn": [50, 60, None]}
    settings = CreditSettings(steps=10)
    table = credit_results.credit_table(found, settings)
    assert "| outcome alone | 200 | 100 | 300 | 1.00 |" in table
    assert "| by turn | 60 | 50 | 1 of 3 did not learn | 0.30 |" in table
    page = credit_results.write_credit_report(found, settings, tmp_path)
    assert table in page.read_text()
    page.write_text("no markers")
    with pytest.raises(StudyError, match="put them back"):
        credit_results.write_credit_report(found, settings, tmp_path)


def test_parts_that_are_finished_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(name: str, seeds: Any, settings: CreditSettings) -> list[int]:
        asked.append(name)
        return [64] * len(seeds)

    monkeypatch.setattr(credit_results, "run", fake)
    for seeds in (2, 2, 3):
        found = credit_results.run_study(tmp_path, seeds, SETTINGS)
        assert {len(needed) for needed in found.values()} == {seeds}
    assert asked == [*CREDITS, *CREDITS]


@pytest.mark.soak
def test_credit_by_turn_needs_at_most_half_of_the_dialogs() -> None:
    settings = CreditSettings()
    needed = {name: run(name, range(6), settings) for name in ("outcome alone", "by turn, discount 0.1")}
    limit = settings.steps * 64
    medians = {name: np.median([limit if n is None else n for n in each]) for name, each in needed.items()}
    assert medians["by turn, discount 0.1"] <= medians["outcome alone"] / 2, needed

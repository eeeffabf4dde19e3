"""The study of the canary: its cells and its tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.study.canary import (
    CanaryCell,
    CanarySettings,
    canary_cells,
    run_cell,
    write_canary_report,
)
from tools.study.records import StudyError, unfinished


def test_cells_deal_out_the_candidates() -> None:
    cells = canary_cells(1000, 100)
    assert sum(cell.seeds for cell in cells if cell.kind in ("same", "better", "within", "by_tenants")) == 1000
    assert sum(cell.seeds for cell in cells if cell.kind == "slow") == 100
    assert len({(cell.kind, cell.first) for cell in cells}) == len(cells)


def test_a_page_is_written_from_finished_cells(tmp_path: Path) -> None:
    settings = CanarySettings(max_hours=1.0)
    wanted = [CanaryCell("same", 0, 1), CanaryCell("mode_collapse", 0, 2)]
    with pytest.raises(StudyError, match="2 of 2 cells are not finished"):
        write_canary_report(tmp_path, wanted, settings, tmp_path)
    for cell in unfinished(tmp_path, wanted, settings):
        run_cell(tmp_path, settings, cell)
    assert unfinished(tmp_path, wanted, settings) == []
    text = write_canary_report(tmp_path, wanted, settings, tmp_path).read_text()
    assert "| mode_collapse: distinct-2 down by 0.2 | 2 | 100.0% (34.2% to 100.0%) |" in text
    assert "| all | 1 | 0.0%" in text
    assert (tmp_path / "canary.svg").read_text().startswith("<?xml")

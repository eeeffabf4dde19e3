"""The page of a gate's report: one self-contained file, in which everything from outside is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner_jax.runtime import SHARED_MODE, write_whole
from tools.reporting import page as reports

REPORT, PAGE = "gate.json", "gate.html"


def write_gate_page(folder: Path, report: Mapping[str, Any]) -> tuple[Path, Path]:
    """Writes report and page into a folder; returns their paths."""
    paths = folder / REPORT, folder / PAGE
    write_whole(paths[0], json.dumps(report, indent=1, allow_nan=False) + "\n", mode=SHARED_MODE)
    template = reports.page_environment().get_template("gate.html")
    page = template.render(report=report, versions=reports.installed_versions())
    write_whole(paths[1], page, mode=SHARED_MODE)
    return paths

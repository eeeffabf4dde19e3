"""The settings of runs side by side: which differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from configs.schema import Config
from tools.dashboard.texts import line

#: Where a run lies is no setting that anybody compares.
_PLACES = ("run.directory",)


def flat(config: Config) -> dict[str, str]:
    """Every setting by its dotted name, as text."""
    found: dict[str, str] = {}
    _flatten(config.model_dump(mode="json"), "", found)
    return {name: value for name, value in found.items() if name not in _PLACES}


def side_by_side(configs: Sequence[Config]) -> dict[str, Any]:
    """All settings of the runs.

    Returns:
      "all": (name, one value each) of every setting, None where a run has none; "different": of those that differ.
    """
    runs = [flat(config) for config in configs]
    names = list(dict.fromkeys(name for run in runs for name in run))
    rows = [[name, *(run.get(name) for run in runs)] for name in names]
    return {"all": rows, "different": [row for row in rows if len(set(row[1:])) > 1]}


def _flatten(value: Any, name: str, found: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            _flatten(item, f"{name}.{key}" if name else str(key), found)
    else:
        found[line(name, 200)] = line("none" if value is None else value, 300)

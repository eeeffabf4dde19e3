"""Records of a study's finished cells, one file each, and the page that reports them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from learner_jax.runtime import SHARED_MODE, WeirError, write_whole

C = TypeVar("C")
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


class StudyError(WeirError, ValueError):
    """The study's records are not all there, or there is no place for its tables."""


def keep(out: Path, cell: Any, record: dict[str, Any]) -> None:
    """Writes one cell's record, whole or not at all.

    Args:
      cell: a frozen dataclass; its fields are named in the file's name, and become part of the record.
      record: has the key `settings`, as a dictionary.
    """
    named = asdict(cell)
    name = "-".join(str(value) for value in named.values()).replace(" ", "_")
    path = out / "cells" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(named | record), mode=SHARED_MODE)


def finished(out: Path, settings: Any, kind: type[C]) -> dict[C, dict[str, Any]]:
    """Records of the cells of this kind that were run with these settings."""
    records = {}
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass, which mypy has no bound for
    for path in sorted((out / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        if record["settings"] == asdict(settings):
            records[kind(*(record[name] for name in names))] = record
    return records


def unfinished(out: Path, wanted: Sequence[C], settings: Any) -> list[C]:
    """Cells that have no record with these settings yet."""
    done = finished(out, settings, type(wanted[0])) if wanted else {}
    return [cell for cell in wanted if cell not in done]


def require_all(wanted: list[C], records: dict[C, dict[str, Any]]) -> dict[C, dict[str, Any]]:
    """The records of the wanted cells, in their order.

    Raises:
      StudyError: cells are missing.
    """
    missing = [cell for cell in wanted if cell not in records]
    if missing:
        raise StudyError(
            f"{len(missing)} of {len(wanted)} cells are not finished, the first is {missing[0]}: run again"
        )
    return {cell: records[cell] for cell in wanted}


def put_tables(page: Path, title: str, tables: str) -> Path:
    """Writes tables into a page between its two markers, and returns it; the text around them stays.

    Raises:
      StudyError: the page has lost its markers.
    """
    text = page.read_text() if page.exists() else f"# {title}\n\n{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise StudyError(f"{page} has no lines {_BEGIN!r} and {_END!r} between which the tables go; put them back")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{_BEGIN}\n\n{tables}\n{_END}{after}")
    return page

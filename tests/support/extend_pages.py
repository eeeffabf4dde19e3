"""The pages of docs/extend, and the files that each shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import tomli_w

from tests.conftest import REPOSITORY

PAGES = REPOSITORY / "docs/extend"
#: of Python that an example may have
MAX_LINES = 20


def files_of(page: str) -> dict[str, str]:
    """Name and text of each block of a page that names a file."""
    text = (PAGES / f"{page}.md").read_text()
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def write(page: str, folder: Path) -> None:
    """The files of a page; each TOML file takes the place of the same tables of the demo's configuration.

    Beside them lies a file that has the name of a package of Weir's, and must be in nobody's way.
    """
    (folder / "rewards.py").write_text("raise SystemExit('the wrong module')")
    for name, text in files_of(page).items():
        if not name.endswith(".toml"):
            (folder / name).write_text(text)
            continue
        whole = tomllib.loads((REPOSITORY / "configs/demo.toml").read_text())
        given = tomllib.loads(text)
        whole["task"] = given.pop("task")
        whole["learner"]["sequence_length"] = 60
        for table, settings in given.items():
            whole[table] |= settings
        (folder / name).write_text(tomli_w.dumps(whole))

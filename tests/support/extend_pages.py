"""The pages of docs/extend, and the files that each shows."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

PAGES = REPOSITORY / "docs/extend"
#: of Python that an example may have
MAX_LINES = 20


def files_of(page: str) -> dict[str, str]:
    """Name and text of each block of a page that names a file."""
    text = (PAGES / f"{page}.md").read_text()
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))

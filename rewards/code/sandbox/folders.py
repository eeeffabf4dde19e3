"""Folders of sandboxes in the temporary folder: each ends with its process, or when the next one is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def open_folder(kind: str) -> tempfile.TemporaryDirectory[str]:
    """A new folder that every user may read; those of processes that were killed are removed.

    Args:
      kind: begins its name.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{kind}-*-*"):
        owner = left.name.removeprefix(f"{kind}-").partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and left.lstat().st_uid == os.geteuid():
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix=f"{kind}-{os.getpid()}-")
    os.chmod(folder.name, 0o755)
    return folder

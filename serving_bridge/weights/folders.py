"""Folders of versions by number: listed without following links, and written in only where they are folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from learner_jax.contracts import MAX_VERSION
from serving_bridge.weights.files import StoreError

_FOLDER = re.compile(r"v([0-9]{8,10})")


def folder_name(version: int) -> str:
    """What a version's folder is called."""
    return f"v{version:08d}"


def number_of(name: str) -> int | None:
    """The version whose folder is called so; None if that is no version's folder."""
    match = _FOLDER.fullmatch(name)
    # Beyond, no token could say that it was sampled by this version.
    if match and int(match[1]) <= MAX_VERSION and folder_name(int(match[1])) == name:
        return int(match[1])
    return None


def own_folder(folder: Path) -> Path:
    """A folder to write in. Raises `StoreError` if it is a link, through which something else would be written."""
    if folder.is_symlink():
        raise StoreError(f"{folder} is a link, expected a folder: remove it, and look for who made it")
    return folder


def numbers(folder: Path, is_kind: Callable[[int], bool]) -> list[int]:
    """Numbers of the entries that are called as versions are and have a mode of this kind, in ascending order."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                number = number_of(entry.name)
                if number is not None:
                    with suppress(FileNotFoundError):
                        if is_kind(entry.stat(follow_symlinks=False).st_mode):
                            found.append(number)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)

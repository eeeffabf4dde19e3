"""Files that are replaced whole: the new one is written beside the old one and takes its name when it is complete.

A reader finds the old content or the new content, never a part. Content and name reach the disk in that order:
`write_whole` survives the death of the process, `write_durably` also that of the machine.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from learner_jax.runtime.disk_errors import at
from learner_jax.runtime.plain_files import FILE_MODE, create_plain


def write_whole(path: Path, content: bytes | str, *, mode: int = FILE_MODE) -> None:
    """Replaces a file without waiting for the disk: after a power failure it may be the old one, empty or cut.

    Args:
      content: text is written as UTF-8.
      mode: of the new file, less what the umask takes away; for its owner alone by default.
    Raises:
      OSError: it names the file; nothing is left beside it.
    """
    _replace(path, content, mode, sync=False)


def write_durably(path: Path, content: bytes | str, *, mode: int = FILE_MODE, sync_name: bool = True) -> None:
    """Replaces a file whose content is on the disk before it has its name; arguments as of `write_whole`.

    Args:
      sync_name: whether the name is on the disk, too, on return. Without, a power failure may bring the old file back.
    Raises:
      OSError: it names the file, or the folder whose names could not be synced.
    """
    _replace(path, content, mode, sync=True)
    if sync_name:
        sync_path(path.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Gives a file or folder another name, which is on the disk on return; what is inside must be synced before."""
    os.replace(source, target)
    sync_path(target.parent)


def sync_path(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk. Raises OSError, which names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with at(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until every file and folder below a folder, and the folder itself, is on the disk."""
    for base, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(base, name))
        sync_path(Path(base))


def _replace(path: Path, content: bytes | str, mode: int, *, sync: bool) -> None:
    payload = content.encode() if isinstance(content, str) else content
    # Random, as several hosts may write the same file, and process ids are no names across hosts or containers.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with at(path), os.fdopen(create_plain(temporary, mode), "wb") as file:
            file.write(payload)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

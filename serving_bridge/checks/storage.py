"""Whether object storage can be reached, written and read, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from serving_bridge.checks.findings import Finding
from serving_bridge.storage import FsspecObjects, StorageError, StorageTimeouts


def storage_findings(setting: str, url: str, *, timeouts: StorageTimeouts) -> Iterator[Finding]:
    """Writes, reads and deletes an object below the URL, and says what of it can't be done."""
    expected = f"{url} to be written and read"
    try:
        is_exclusive = FsspecObjects(url, timeouts=timeouts).probe()
    except StorageError as error:
        yield Finding(setting, expected, str(error), "", may_heal=error.can_heal)
        return
    if not is_exclusive:
        yield Finding(
            setting,
            "conditional writes (If-None-Match), by which two publishers are told apart",
            "the server ignores them",
            "never let two learners use the same place",
            "warning",
        )

"""Object storage in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path


class MemoryObjects:
    """Implements `ObjectStore`.

    Attributes:
      held: key -> content.
    """

    def __init__(self, url: str = "s3://bucket/run/checkpoints") -> None:
        self.url = url
        self.held: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, content: bytes) -> None:
        self.held[key] = content

    def put_new(self, key: str, content: bytes) -> bool:
        with self._lock:
            return self.held.setdefault(key, content) is content

    def put_file(self, key: str, path: Path) -> None:
        self.held[key] = path.read_bytes()

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self.get_range(key, 0, max_bytes)

    def get_range(self, key: str, start: int, num_bytes: int) -> bytes:
        if key not in self.held:
            raise FileNotFoundError(key)
        return self.held[key][start : start + num_bytes]

    def size(self, key: str) -> int | None:
        return len(self.held[key]) if key in self.held else None

    def list(self, prefix: str = "") -> dict[str, int]:
        return {key: len(content) for key, content in self.held.items() if key.startswith(prefix)}

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.held.pop(key, None)

"""Hosts as threads around a store in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from learner_jax.hosts.hosts import Hosts

T = TypeVar("T")


class MemoryStore:
    """What the coordination service is to processes, for threads."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def put(self, key: str, value: bytes) -> bool:
        with self._changed:
            if key in self.values:
                return False
            self.values[key] = value
            self._changed.notify_all()
            return True

    def wait(self, key: str, timeout_s: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self.values, timeout_s)
            return self.values.get(key)

    def delete(self, key: str) -> None:
        with self._changed:
            del self.values[key]


def on_hosts(
    count: int, program: Callable[[Hosts], T], *, store: MemoryStore | None = None, timeout_s: float = 10.0
) -> list[T]:
    """What each host's run of the program returned; the first exception in the order of hosts is raised."""
    store = store or MemoryStore()

    def run(index: int) -> T:
        with Hosts(index, count, store=store, timeout_s=timeout_s) as hosts:
            return program(hosts)

    with ThreadPoolExecutor(max_workers=count) as pool:
        running = [pool.submit(run, index) for index in range(count)]
        return [future.result(timeout=30) for future in running]

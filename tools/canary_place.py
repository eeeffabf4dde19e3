"""Where `tools.canary` finds a registry, its rollouts and its observations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving_bridge.access import kept_secret
from serving_bridge.canary import (
    CANARY,
    OBSERVATIONS,
    CanaryError,
    LogSource,
    ObservationLog,
    Observer,
    Place,
    Rollouts,
)
from serving_bridge.database import Database, is_postgres, open_database
from serving_bridge.registry import Registry, read_trusted_keys

OBSERVATIONS_FILE = "observations.sqlite"
INDEX_FILE = "index.sqlite"
_SECRETS, _WEBHOOK_SECRET = "secrets", "webhooks.key"
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class CanaryPlace:
    """What is opened.

    Attributes:
      another: opens one more connection to the rollouts.
    """

    registry: Registry
    rollouts: Rollouts
    log: ObservationLog
    another: Callable[[], Database]

    def place(self, namespace: str) -> Place:
        """What a controller of this namespace works on."""

        def problems(number: int) -> Sequence[str]:
            return self.registry.problems(self.registry.index.standing(namespace, number))

        return Place(namespace, self.registry.index, self.rollouts, LogSource(self.log), problems, time.time)


def _observations(root: Path, database: str | None) -> str | Path:
    """Beside the index on a server; on SQLite a file of their own, so that no move waits for them."""
    return database if database and is_postgres(database) else root / OBSERVATIONS_FILE


@contextmanager
def opened_canary(
    root: Path, database: str | None, observations: str | None, *, trusted_key: Path | None = None
) -> Iterator[CanaryPlace]:
    """The registry of a folder with its rollouts and observations.

    Args:
      trusted_key: file of the public keys that signatures are demanded by; None where they are not.

    Raises:
      CanaryError: there is no such folder.
      DatabaseError: a database can't be opened.
    """
    if not root.is_dir():
        raise CanaryError(f"{root} does not exist: expected the folder of a registry (tools.registry add makes one)")
    index = database or root / INDEX_FILE
    trusted = None if trusted_key is None else read_trusted_keys(trusted_key)
    registry = Registry(root, database=database, timeout_s=_TIMEOUT_S, trusted=trusted)

    def another() -> Database:
        return open_database(index, timeout_s=_TIMEOUT_S, schema=CANARY)

    rows = another()
    seen = open_database(observations or _observations(root, database), timeout_s=_TIMEOUT_S, schema=OBSERVATIONS)
    try:
        yield CanaryPlace(registry, Rollouts(rows), ObservationLog(seen), another)
    finally:
        for opened in (seen, rows):
            opened.close()
        registry.close()


@contextmanager
def observing(root: str, database: str, namespace: str) -> Iterator[Observer]:
    """Takes note of a gateway's answers, where `tools.canary` finds them.

    Args:
      root: the registry's folder.
      database: URL of its index; "" for the file in the folder.

    Raises:
      DatabaseError: there is no place for them.
    """
    opened = open_database(_observations(Path(root), database), timeout_s=_TIMEOUT_S, schema=OBSERVATIONS)
    observer = Observer(ObservationLog(opened), namespace)
    observer.start()
    try:
        yield observer
    finally:
        observer.close()
        opened.close()


def webhook_secret(root: Path) -> bytes:
    """32 bytes that messages are signed with; made where they are missing."""
    return kept_secret(root / _SECRETS, _WEBHOOK_SECRET, make=True, advice="give it to those who get the messages")

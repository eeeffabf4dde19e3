"""Tenants on both engines, for tests that must hold on either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from serving_bridge.database import Database, open_database
from serving_bridge.tenants import TENANTS, Accounts, DeploymentSecret, Directory
from tests.support.queue_engines import Clock

SECRET = DeploymentSecret(bytes(range(32)))


@dataclass
class Deployment:
    """A deployment's database and clocks, and what is opened on it."""

    url: str
    wall: Clock = field(default_factory=Clock)
    clock: Clock = field(default_factory=Clock)
    opened: list[Database] = field(default_factory=list)

    def database(self) -> Database:
        found = open_database(self.url, schema=TENANTS)
        self.opened.append(found)
        return found

    def accounts(self) -> Accounts:
        return Accounts(self.database(), SECRET, clock=self.wall)

    def directory(self, **settings: Any) -> Directory:
        made = Directory(self.database(), SECRET, clock=self.clock, wall=self.wall, **settings)
        made.refresh()
        return made


@pytest.fixture
def deployment(database_url: str) -> Iterator[Deployment]:
    """A deployment without tenants, on each engine."""
    found = Deployment(database_url)
    yield found
    for database in found.opened:
        database.close()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}

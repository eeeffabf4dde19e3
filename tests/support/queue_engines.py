"""Queues on both engines, for tests that must hold on either."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from serving_bridge.database.database import Session
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from tests.support.postgres_server import ENGINES as ENGINES
from tests.support.trajectories import make_group

PACE = Pace(max_staleness=1, groups_per_step=2, total_steps=10)

_schemas = itertools.count()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Place:
    """Where a queue is, and connections to it."""

    url: str
    clock: Clock = field(default_factory=Clock)
    opened: list[TrajectoryQueue] = field(default_factory=list)

    def open(self, **settings: Any) -> TrajectoryQueue:
        settings = {"lease_s": 60, "max_tries": 2, "clock": self.clock} | settings
        queue = TrajectoryQueue(self.url, **settings)
        self.opened.append(queue)
        return queue


@pytest.fixture
def place(database_url: str) -> Iterator[Place]:
    """A place without a queue yet, on each engine."""
    found = Place(database_url)
    yield found
    for queue in found.opened:
        queue.close()


def fresh_url(server: str) -> str:
    """A schema that no other test of this session uses."""
    return f"{server}{'&' if '?' in server else '?'}schema=test_{next(_schemas)}"


@pytest.fixture
def queue(place: Place) -> TrajectoryQueue:
    return place.open()


@pytest.fixture
def clock(place: Place) -> Clock:
    return place.clock


def execute(queue: TrajectoryQueue, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    """Goes around the state machine, to damage things."""

    def work(session: Session) -> list[Any]:
        return session.execute(sql, parameters)

    return queue.database.write(work)


def put(queue: TrajectoryQueue, *indices: int, **settings: Any) -> int:
    return queue.producer.put([(i, make_group(f"run/{i}", seed=i, **settings)) for i in indices])


def lease(queue: TrajectoryQueue, count: int = 10, *, version: int = 1, max_staleness: int = 5) -> list[str]:
    report = queue.consumer.lease_groups(count, trained_version=version, max_staleness=max_staleness)
    return [group[0].group_id for group in report.groups]


def train(queue: TrajectoryQueue, group_ids: list[str], step: int = 1) -> None:
    queue.consumer.mark_trained(group_ids, completed_steps=step, trained_version=step + 1)


class CountedDatabase:
    """Counts the writing transactions of a database, and can fail around their commits."""

    def __init__(self, inner: Any, before: Callable[[int], None] = lambda number: None):
        self.inner, self.before, self.num_writes = inner, before, 0

    @property
    def name(self) -> str:
        return self.inner.name

    def write(self, work: Callable[[Session], Any], *, synced: bool = True) -> Any:
        self.num_writes += 1

        def failing(session: Session) -> Any:
            result = work(session)
            self.before(self.num_writes)
            return result

        return self.inner.write(failing, synced=synced)

    def read(self, work: Callable[[Session], Any]) -> Any:
        return self.inner.read(work)

    def close(self) -> None:
        self.inner.close()

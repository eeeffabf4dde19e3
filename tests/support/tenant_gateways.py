"""Gateways' tenants on a test's database and clocks, without threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.database import Database
from serving_bridge.tenants import (
    Accounts,
    Ask,
    Caller,
    MeterRow,
    Price,
    Tenants,
    TenantsPolicy,
    Ticket,
    read_price,
)
from tests.support.tenant_worlds import SECRET, Deployment, bearer


async def inline(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def tenants_on(
    database: Database,
    spool: Path,
    *,
    clock: Callable[[], float],
    wall: Callable[[], float],
    policy: TenantsPolicy | None = None,
    name: str = "",
) -> Tenants:
    """A gateway's tenants; `start` is not called."""
    return Tenants(
        "", SECRET, spool, policy=policy, name=name, database=database, clock=clock, wall=wall, blocking=inline
    )


async def answered(tenants: Tenants, key: str, ask: Ask, response_id: str, used: tuple[int, int]) -> Caller:
    """One request from its key to its bill."""
    caller = tenants.authenticate(bearer(key))
    ticket = await tenants.admit(caller, ask, response_id, timeout_s=1.0)
    ticket.settle(*used)
    return caller


def killed(tenants: Tenants) -> None:
    """What the kernel does with a process after SIGKILL."""
    tenants._journal.close(remove=False)


ASK = Ask(prompt_tokens=10, max_tokens=90, model="demo")


@dataclass
class World:
    """A deployment with the tenant acme."""

    deployment: Deployment
    spool: Path
    accounts: Accounts
    key: str
    opened: list[Tenants] = field(default_factory=list)

    def open(self, **settings: Any) -> Tenants:
        made = tenants_on(
            self.deployment.database(), self.spool, clock=self.deployment.clock, wall=self.deployment.wall, **settings
        )
        self.opened.append(made)
        return made

    def bills(self) -> list[MeterRow]:
        return list(self.accounts.export())

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.deployment.opened[0].read(lambda session: session.execute(sql))


@pytest.fixture
def world(deployment: Deployment, tmp_path: Path) -> Iterator[World]:
    accounts = deployment.accounts()
    accounts.add("acme", priority="paid")
    accounts.set_price("demo", Price(read_price("1"), read_price("2")))
    deployment.wall.now_s = datetime(2026, 11, 30, 23, 59, 0, tzinfo=UTC).timestamp()
    made = World(deployment, tmp_path / "spool", accounts, accounts.create_key("acme").key)
    yield made
    for tenants in made.opened:
        killed(tenants)


async def admit(tenants: Tenants, world: World, number: int, ask: Ask = ASK, timeout_s: float = 1.0) -> Ticket:
    caller = tenants.authenticate(bearer(world.key))
    return await tenants.admit(caller, ask, f"r{number}", timeout_s=timeout_s)

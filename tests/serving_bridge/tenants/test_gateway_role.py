"""On PostgreSQL a gateway has a role of its own, which does its work and changes no tenant, key, limit or bill."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from serving_bridge.database import DatabaseError, open_database
from serving_bridge.database.roles import prepare
from serving_bridge.tenants import TENANTS, Accounts, Ask, Tenants
from tests.support.queue_engines import fresh_url
from tests.support.tenant_gateways import answered, inline
from tests.support.tenant_worlds import SECRET

ROLE = "weir_test_gateway"


@pytest.mark.postgres
def test_a_gateway_does_its_work_with_its_own_rights_only(postgres_url: str, tmp_path: Path) -> None:
    url = fresh_url(postgres_url)
    with psycopg.connect(postgres_url.partition("?schema")[0], autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchone() is None:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN")
    owner = open_database(url, schema=TENANTS)
    prepare(url, {"gateway": ROLE})
    accounts = Accounts(owner, SECRET)
    accounts.add("acme")
    accounts.set_limits("acme", {"requests_per_minute": 600, "concurrency": 8, "month_tokens": 10**6})
    key = accounts.create_key("acme").key
    as_role = open_database(f"{url}&user={ROLE}", schema=TENANTS)

    async def scenario() -> None:
        tenants = Tenants("", SECRET, tmp_path / "spool", database=as_role, blocking=inline)
        await tenants.start()
        await answered(tenants, key, Ask(10, 20), "r1", (10, 5))
        await tenants._exchange.once()
        tenants._exchange._late_orphans = ["gone"]
        await tenants.close()

    asyncio.run(scenario())
    assert [bill.response_id for bill in accounts.export()] == ["r1"]
    for statement in (
        "UPDATE meter SET nanos = 0",
        "DELETE FROM meter",
        "UPDATE tenants SET priority = 'paid'",
        "UPDATE limits SET concurrency = NULL",
        "INSERT INTO api_keys SELECT * FROM api_keys",
        "UPDATE api_keys SET revoked_s = NULL",
        "UPDATE prices SET prompt = '0'",
        "TRUNCATE budgets",
        "CREATE TABLE mine (x int)",
    ):
        with pytest.raises(DatabaseError, match="another role is needed here"):
            as_role.write(lambda session, statement=statement: session.execute(statement))
    as_role.close()
    owner.close()

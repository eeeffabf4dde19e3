"""Tenants at the gateway's door: keys, limits and bills, with the real room of tenants and its database."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

from serving_bridge.database import open_database
from serving_bridge.gateway import TenantAdmission
from serving_bridge.tenants import TENANTS, Accounts, DeploymentSecret, Tenants, TenantsPolicy
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, World, running_gateway
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

CHAT: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}


async def ask(world: World, key: str | None, path: str = "/v1/chat/completions") -> tuple[int, Any, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with world.session.post(world.url + path, json=CHAT, headers=headers) as response:
        return response.status, await response.json(), response.headers


def test_tenants_are_known_limited_and_billed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    secret = DeploymentSecret.in_folder(tmp_path / "keys", make=True)
    url = tmp_path / "tenants.db"
    with closing(open_database(url, schema=TENANTS)) as database:
        accounts = Accounts(database, secret)
        accounts.add("alice", priority="paid")
        accounts.add("bob", priority="free")
        keys = {name: accounts.create_key(name).key for name in ("alice", "bob")}
        accounts.set_limits("bob", {"requests_per_minute": 1, "request_burst": 1})

    async def play() -> None:
        script = Script()
        known = Tenants(url, secret, tmp_path / "spool", policy=TenantsPolicy(interval_s=0.1))
        async with running_gateway(tmp_path, tokenizer, script, admission=TenantAdmission(known)) as world:
            for key in (None, "nonsense", keys["alice"][:-1] + "x"):
                status, answer, headers = await ask(world, key)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert headers["WWW-Authenticate"] == "Bearer"
            assert not script.asked
            for name in ("alice", "bob"):
                assert (await ask(world, keys[name]))[0] == 200
            first, second = script.asked
            assert first["priority"] < second["priority"]
            assert len({first["cache_salt"], second["cache_salt"], ""}) == 3
            status, answer, headers = await ask(world, keys["bob"])
            assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(headers["Retry-After"]) >= 1
            assert (await ask(world, keys["alice"]))[0] == 200, "bob's limit is not alice's"

    asyncio.run(play())
    with closing(open_database(url, schema=TENANTS)) as database:
        rows = list(Accounts(database, secret).export(tenant="alice"))
    assert len(rows) == 2, "an answer was billed twice, or not at all"
    assert all(row.prompt_tokens > 0 and row.completion_tokens > 3 for row in rows)

"""Tenants at the gateway's door: keys, limits and bills, with the real room of tenants and its database."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.database import open_database
from serving_bridge.gateway import NoGuards, TenantAdmission, bodies
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


class Deployment:
    """alice without limits, and bob, who may ask once a minute."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, folder / "tenants.db"
        self.secret = DeploymentSecret.in_folder(folder / "keys", make=True)
        with closing(open_database(self.url, schema=TENANTS)) as database:
            accounts = Accounts(database, self.secret)
            accounts.add("alice", priority="paid")
            accounts.add("bob", priority="free")
            self.keys = {name: accounts.create_key(name).key for name in ("alice", "bob")}
            accounts.set_limits("bob", {"requests_per_minute": 1, "request_burst": 1})

    def admission(self) -> TenantAdmission:
        return TenantAdmission(
            Tenants(self.url, self.secret, self.folder / "spool", policy=TenantsPolicy(interval_s=0.1))
        )


def test_tenants_are_known_limited_and_billed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    deployment = Deployment(tmp_path)
    keys, url, secret = deployment.keys, deployment.url, deployment.secret

    async def play() -> None:
        script = Script()
        async with running_gateway(tmp_path, tokenizer, script, admission=deployment.admission()) as world:
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


class CountedGuards(NoGuards):
    """Lets everything through, and counts the prompts."""

    def __init__(self) -> None:
        self.prompts = 0

    async def prompt(self, *_: Any) -> None:
        self.prompts += 1


async def told(world: World, *sent: bytes) -> list[tuple[bytes, bytes]]:
    """(head, body) of the answer to each of these, sent on one connection one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    found = []
    try:
        async with asyncio.timeout(20):
            for request in sent:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.splitlines() if line.startswith(b"content-length: "))
                found.append((head, await reader.readexactly(int(length[16:]))))
            if b"connection: close" in found[-1][0]:
                assert await reader.read() == b""
    finally:
        writer.close()
    return found


def request_of(key: str, body: bytes, *, length: int | None = None, more: bytes = b"") -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    head += b"Authorization: Bearer %b\r\nContent-Length: %d\r\n" % (
        key.encode(),
        len(body) if length is None else length,
    )
    return head + more + b"\r\n" + body


def test_who_can_have_nothing_now_is_refused_unread(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is parsed or judged for it; a body that does not come whole costs the connection and a moment alone."""
    monkeypatch.setattr(bodies, "_DISCARD_S", 0.1)
    deployment, guards, script = Deployment(tmp_path), CountedGuards(), Script()
    bob, nobody = deployment.keys["bob"], "weir_sk_nobody"

    async def play() -> None:
        async with running_gateway(
            tmp_path, tokenizer, script, admission=deployment.admission(), guards=guards
        ) as world:
            assert (await ask(world, bob))[0] == 200
            assert guards.prompts == 1
            for key, status in ((bob, b"429"), (nobody, b"401")):
                whole = request_of(key, b"{this is no JSON")
                answers = await told(world, whole, whole, request_of(key, json.dumps(CHAT).encode()))
                answers += await told(world, request_of(key, b"{", length=1000))
                answers += await told(world, request_of(key, b"", length=1000, more=b"Expect: 100-continue\r\n"))
                for head, _ in answers:
                    assert head.startswith(b"HTTP/1.1 " + status)
                    assert (b"retry-after: " in head) == (key == bob)
                closed = [b"connection: close" in head for head, _ in answers]
                assert closed == [False, False, False, True, True]
                codes = {json.loads(body)["error"]["code"] for _, body in answers}
                assert codes == {"rate_limit_exceeded" if key == bob else "invalid_api_key"}
            assert guards.prompts == len(script.asked) == 1
            assert (await ask(world, deployment.keys["alice"]))[0] == 200

    asyncio.run(play())

"""Fallback on real vLLM with a real chat model (soak): each case comes about as it does in a deployment."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest
from aiohttp import web

from rewards.environments import citations
from serving_bridge.guard_models import Classifier, fitted
from tests.conftest import REPOSITORY
from tests.support.fallback_world import documents
from tests.support.real_chat import RealRun, kill_servers, real_run, smollm2
from tools.screening import guard_application

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

KEY = "a key of sixteen characters or more"
SEINE = [{"role": "user", "content": "How long is the Seine, in km?"}]
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
UNLIKE = [{"role": "user", "content": "zzz qqq"}]
MORE = """
[safety]
deadline_s = 3.0
{models}
[fallback]
webhook_secret_env = "HOOK_KEY"
corpora = {{ rivers = "{rivers}" }}
"""
GUARD = """
[[safety.models]]
name = "small"
format = "qwen3guard"
url = "{url}"
model = "weir-guard"
"""
PROBLEMS = 60


def test_answers_that_are_not_sure_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", KEY)
    run = deployment(tmp_path)

    async def play() -> None:
        async with people() as (webhook, heard), run.served(), aiohttp.ClientSession() as session:
            calibration = await calibrated(run, tmp_path)
            unsure = ("fallback.min_confidence=1", f"fallback.calibration={calibration}")
            await low_confidence(run, session, webhook, heard, unsure)
            await retrieving(run, session, unsure)

    asyncio.run(play())


def test_replicas_and_guards_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", KEY)

    async def play() -> None:
        async with served_guard() as guard, aiohttp.ClientSession() as session:
            run = deployment(tmp_path, GUARD.format(url=guard.url))
            before = real_run(tmp_path / "before", smollm2(), name="before")
            async with run.served() as fleet:
                await guard_down(run, session, guard)
                async with before.served() as older:
                    await killed(run, before, session, fleet, older)

    asyncio.run(play())


def deployment(folder: Path, models: str = "") -> RealRun:
    (rivers,) = documents(folder).values()
    return real_run(folder / "run", smollm2(), more=MORE.format(models=models, rivers=rivers))


class Asked:
    """An answer: status, header and body."""

    def __init__(self, status: int, fallback: str, body: Any) -> None:
        self.status, self.fallback, self.body = status, fallback, body

    @property
    def text(self) -> str:
        return str(self.body["choices"][0]["message"]["content"])


async def ask(session: aiohttp.ClientSession, url: str, messages: Any, **more: Any) -> Asked:
    body = {"model": "policy", "messages": messages, "max_tokens": 40, "seed": 1, **more}
    timeout = aiohttp.ClientTimeout(total=120)
    async with session.post(f"{url}/chat/completions", json=body, timeout=timeout) as response:
        return Asked(response.status, response.headers.get("x-weir-fallback", ""), await response.json())


async def calibrated(run: RealRun, folder: Path) -> Path:
    """A calibration of the model's own answers, made by the product's command through the gateway."""
    answers, fitted = folder / "answers.jsonl", folder / "calibration.json"
    async with run.gateway("safety.enabled=false") as url:
        collect = ["collect", "--config", str(run.config), "--problems", str(PROBLEMS), "--max-tokens", "40"]
        await command(*collect, "--url", url, "--temperature", "0.7", "--out", str(answers))
    await command("fit", "--answers", str(answers), "--out", str(fitted))
    return fitted


async def command(*words: str) -> None:
    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tools.confidence", *words], capture_output=True, text=True, cwd=REPOSITORY,
            timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    print(await asyncio.to_thread(run))


async def low_confidence(
    run: RealRun, session: aiohttp.ClientSession, webhook: str, heard: list[Any], unsure: tuple[str, ...]
) -> None:
    """An answer that is not sure enough goes to people, with a signed request; a stream says so at its end."""
    more = ('fallback.low_confidence=["retry","hand_over"]', f"fallback.webhook={webhook}", "safety.models=[]")
    async with run.gateway(*unsure, *more) as url:
        found = await ask(session, url, SUM)
        assert (found.status, found.fallback) == (200, "low_confidence/hand_over")
        assert found.text == "A person says 42."
        ((body, signed),) = heard
        assert signed
        assert (body["case"], body["messages"]) == ("low_confidence", SUM)
        async with session.post(
            f"{url}/chat/completions", json={"model": "policy", "messages": SUM, "max_tokens": 20, "stream": True}
        ) as response:
            events = [json.loads(line[6:]) for line in (await response.text()).splitlines() if line[6:7] == "{"]
        (told,) = [event["weir"] for event in events if event.get("weir")]
        assert told["low_confidence"] == [True]
        assert 0 < told["confidence"][0] < 1


async def retrieving(run: RealRun, session: aiohttp.ClientSession, unsure: tuple[str, ...]) -> None:
    """What is told from documents cites one that was shown; a small model does not always manage to."""
    counted: Counter[str] = Counter()
    more = ('fallback.low_confidence=["retrieve","abstain"]', "safety.models=[]")
    async with run.gateway(*unsure, *more) as url:
        for seed in range(12):
            found = await ask(session, url, SEINE, seed=seed, temperature=0.7)
            assert found.status == 200
            counted[found.fallback] += 1
            if found.fallback == "low_confidence/retrieve":
                cited = found.body["weir"]["fallback"]["citations"]
                assert set(cited) <= {"seine", "tiber"}
                assert set(citations(found.text)) >= set(cited) != set()
        assert (await ask(session, url, UNLIKE)).fallback == "low_confidence/abstain"
    print(f"answers from documents: {dict(counted)}")
    assert set(counted) <= {"low_confidence/retrieve", "low_confidence/abstain"}


async def killed(
    run: RealRun,
    before: RealRun,
    session: aiohttp.ClientSession,
    fleet: psutil.Process,
    older: psutil.Process,
) -> None:
    """kill -9 of all replicas amid traffic: the older version answers, then documents, then the model again."""
    policies = 'fallback.unavailable=["previous_version","retrieve","abstain"]'
    heard: list[tuple[float, Asked]] = []
    async with run.gateway(policies, f"fallback.previous_run={before.directory}", "safety.models=[]") as url:

        async def client(number: int) -> None:
            while True:
                found = await ask(session, url, SEINE, seed=number)
                heard.append((time.monotonic(), found))

        async def until(fallback: str, limit_s: float) -> float:
            began_s = time.monotonic()
            while not any(at_s > began_s and found.fallback == fallback for at_s, found in heard[-8:]):
                assert time.monotonic() - began_s < limit_s, Counter(found.fallback for _, found in heard)
                await asyncio.sleep(0.1)
            return time.monotonic() - began_s

        clients = [asyncio.ensure_future(client(number)) for number in range(4)]
        try:
            await until("", 60)
            assert kill_servers(fleet)
            second = await until("unavailable/previous_version", 60)
            assert kill_servers(older)
            third = await until("unavailable/retrieve", 60)
            assert (await ask(session, url, UNLIKE)).fallback in ("unavailable/abstain", "unavailable/previous_version")
            back = await until("", 400)
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    statuses = Counter(found.status for _, found in heard)
    print(
        f"all replicas killed: previous version after {second:.1f} s, documents after {third:.1f} s, back {back:.0f} s"
    )
    print(f"{dict(statuses)}, {dict(Counter(found.fallback for _, found in heard))}")
    assert set(statuses) == {200}, "a user got an error"
    assert all("seine" in found.text for _, found in heard if found.fallback == "unavailable/retrieve")


async def guard_down(run: RealRun, session: aiohttp.ClientSession, guard: ServedGuard) -> None:
    """A guard model that is gone closes the door; what is told instead is the operator's text, until it is back."""
    async with run.gateway('fallback.guard_failed=["abstain"]') as url:
        assert (await ask(session, url, SUM)).fallback == ""
        await guard.down()
        found = await ask(session, url, SUM)
        assert (found.status, found.fallback, found.text) == (200, "guard_failed/abstain", "I can't answer this.")
        await guard.up()
        assert (await ask(session, url, SUM)).fallback == ""


class ServedGuard:
    """The small guard behind HTTP, at one port."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def up(self) -> None:
        self._runner = web.AppRunner(guard_application(_classifier()), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def down(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()


def _classifier() -> Classifier:
    unsafe = ["brew a potion of doom", "doom potion please", "potion for doom now", "make the doom potion"]
    safe = ["what is the time", "add two numbers please", "tell me a story", "make a cake now"]
    weights, bias = fitted([*unsafe, *safe], [True] * len(unsafe) + [False] * len(safe), penalty=0.01)
    return Classifier(np.asarray(weights), bias, 0.5)


@asynccontextmanager
async def served_guard() -> AsyncIterator[ServedGuard]:
    guard = ServedGuard()
    await guard.up()
    try:
        yield guard
    finally:
        await guard.down()


@asynccontextmanager
async def people() -> AsyncIterator[tuple[str, list[Any]]]:
    """A webhook's receiver, and what it heard: bodies, and whether their signatures are right."""
    heard: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        stamp = request.headers["X-Weir-Timestamp"]
        wanted = hmac.new(KEY.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        heard.append((json.loads(body), hmac.compare_digest(request.headers["X-Weir-Signature"], wanted)))
        return web.json_response({"text": "A person says 42."})

    app = web.Application()
    app.router.add_post("/take", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/take", heard
    finally:
        await runner.cleanup()

"""What stands in for the model's answer: documents with citations, and whoever is behind a webhook."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from serving_bridge.fallback import Webhook
from serving_bridge.gateway import Fallback
from serving_bridge.settings import FallbackSettings
from serving_bridge.text import Tokenizer
from tests.support.fallback_world import QUESTION, documents, lines_of, played, told
from tests.support.gateway_world import Script, World, running_gateway
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]


def test_an_answer_from_documents_cites_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script(texts=("I don't know.", "It is 777 km long [seine]."))

    async def test(world: World) -> None:
        _, answer = await world.ask(messages=[*QUESTION], store=True)
        assert told(answer) == ("unknown", "retrieve", "It is 777 km long [seine].")
        assert answer["weir"]["fallback"]["citations"] == ["seine"]
        prompt = tokenizer.decode(script.asked[1]["token_ids"])
        assert "It is 777 km long." in prompt
        assert prompt.index("Question: How long is the Seine?") > prompt.index("[seine]")

    played(tmp_path, tokenizer, test, script, unknown=("retrieve",), corpora=documents(tmp_path))
    (example,) = lines_of(tmp_path / "fallback" / "examples" / "gateway-0.jsonl")
    assert (example["citations"], example["messages"]) == (["seine"], QUESTION)


@pytest.mark.parametrize("said", ["It is 777 km long.", "It is 777 km long [rhine].", "I don't know. [seine]"])
def test_an_answer_from_documents_without_a_citation_is_not_told(
    said: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def test(world: World) -> None:
        _, answer = await world.ask(messages=QUESTION)
        assert told(answer)[:2] == ("unknown", "abstain")

    played(
        tmp_path,
        tokenizer,
        test,
        Script(texts=("I do not know", said)),
        unknown=("retrieve", "abstain"),
        corpora=documents(tmp_path),
    )


def test_documents_are_shown_as_they_are_where_no_model_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        _, answer = await world.ask(messages=QUESTION)
        case, policy, text = told(answer)
        assert (case, policy) == ("unavailable", "retrieve")
        assert "[seine] Seine: The Seine flows through Paris. It is 777 km long." in text
        assert answer["weir"]["fallback"]["citations"][0] == "seine"
        _, answer = await world.ask(messages=[{"role": "user", "content": "zzz qqq"}])
        assert told(answer)[1] == "abstain"

    played(
        tmp_path,
        tokenizer,
        test,
        Script(status=503),
        unavailable=("retrieve", "abstain"),
        corpora=documents(tmp_path),
    )


def test_a_tenants_documents_are_its_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = documents(tmp_path)

    async def test(world: World) -> None:
        policies = {}
        for tenant in ("acme", "other"):
            body = {"model": "policy", "messages": QUESTION}
            headers = {"x-tenant": tenant}
            async with world.session.post(world.url + "/v1/chat/completions", json=body, headers=headers) as response:
                policies[tenant] = told(await response.json())[1:]
        assert policies["acme"][0] == "retrieve"
        assert policies["other"] == ("abstain", "Others get this.")

    played(
        tmp_path,
        tokenizer,
        test,
        Script(status=503),
        unavailable=("retrieve",),
        corpora=found,
        tenants={
            "acme": {"corpora": ("rivers",)},
            "other": {"unavailable": ("retrieve", "abstain"), "abstain_text": "Others get this."},
        },
    )


async def _stranger(request: web.Request) -> web.Response:
    return web.json_response({"text": "a stranger's words"})


@asynccontextmanager
async def webhook(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/take", answer)
    app.router.add_get("/elsewhere", _stranger)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/take"
    finally:
        await runner.cleanup()


async def handed_over(folder: Path, tokenizer: Tokenizer, url: str, **more: Any) -> tuple[int, Any]:
    settings = FallbackSettings(unavailable=("hand_over", "abstain"), webhook=url, **{"webhook_timeout_s": 0.3, **more})
    fallback = Fallback(settings, webhook=Webhook(url, key=b"k" * 16, timeout_s=settings.webhook_timeout_s))
    async with running_gateway(folder, tokenizer, Script(status=503), fallback=fallback) as world:
        return await world.ask(messages=QUESTION)


def test_handing_over(tmp_path: Path, tokenizer: Tokenizer) -> None:
    seen: list[Any] = []

    async def people(request: web.Request) -> web.Response:
        body = await request.read()
        stamp = request.headers["X-Weir-Timestamp"]
        wanted = hmac.new(b"k" * 16, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(request.headers["X-Weir-Signature"], wanted)
        seen.append(json.loads(body))
        return web.json_response({"text": "A person says 777 km."} if len(seen) == 1 else {}, status=200)

    async def play() -> None:
        async with webhook(people) as url:
            _, answer = await handed_over(tmp_path, tokenizer, url)
            assert told(answer) == ("unavailable", "hand_over", "A person says 777 km.")
            assert (seen[0]["messages"], seen[0]["case"]) == (QUESTION, "unavailable")
            assert f"{seen[0]['response_id']}-1" == answer["id"]
            _, answer = await handed_over(tmp_path, tokenizer, url, hand_over_text="Later.")
            assert told(answer) == ("unavailable", "hand_over", "Later.")

    asyncio.run(play())


@pytest.mark.parametrize("kind", ["hangs", "refuses", "redirects", "nonsense", "huge", "nobody"])
def test_a_webhook_that_fails_gives_way_to_the_next_policy(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def broken(request: web.Request) -> web.Response:
        match kind:
            case "hangs":
                await asyncio.sleep(30)
            case "refuses":
                return web.Response(status=500)
            case "redirects":
                return web.Response(status=302, headers={"Location": "/elsewhere"})
            case "huge":
                return web.json_response({"text": "x" * 100_000})
        return web.Response(text="<html>")

    async def play() -> None:
        async with webhook(broken) as url:
            if kind == "nobody":
                url = "http://127.0.0.1:9/take"
            began_s = asyncio.get_running_loop().time()
            status, answer = await handed_over(tmp_path, tokenizer, url)
            assert (status, *told(answer)[:2]) == (200, "unavailable", "abstain")
            assert asyncio.get_running_loop().time() - began_s < 5.0

    asyncio.run(play())


def test_a_webhook_that_fails_in_a_row_is_left_alone() -> None:
    now_s = [0.0]
    posts: list[int] = []

    async def broken(request: web.Request) -> web.Response:
        posts.append(1)
        return web.Response(status=500)

    async def play() -> None:
        async with webhook(broken) as url, aiohttp.ClientSession() as session:
            hook = Webhook(url, timeout_s=5.0, monotonic=lambda: now_s[0])

            async def post() -> None:
                with pytest.raises(Exception, match="webhook"):
                    await hook.hand_over(session, response_id="r", tenant="t", case="unknown", messages=[])

            for _ in range(6):
                await post()
            assert len(posts) == 3
            now_s[0] = 1.1
            await post()
            await post()
            assert len(posts) == 4
            now_s[0] = 2.9
            await post()
            assert len(posts) == 4, "the pause doubles"

    asyncio.run(play())


def test_a_policy_that_hangs_leaves_time_for_the_next(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def play() -> None:
        async with webhook(hang) as url:
            settings = FallbackSettings(unavailable=("hand_over", "abstain"), webhook=url, webhook_timeout_s=60.0)
            fallback = Fallback(settings, webhook=Webhook(url, timeout_s=60.0))
            async with running_gateway(tmp_path, tokenizer, Script(status=503), fallback=fallback) as world:
                body, headers = {"model": "policy", "messages": QUESTION}, {"X-Weir-Timeout-S": "1.0"}
                async with world.session.post(
                    world.url + "/v1/chat/completions", json=body, headers=headers
                ) as response:
                    assert told(await response.json())[1] == "abstain"

    asyncio.run(play())

"""Guard models over HTTP: verdicts, nonsense, deadlines, votes, and the small guard behind the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from serving_bridge.gateway import GuardedGateway
from serving_bridge.guard_models import Classifier, ServedGuard, fitted, served_guards
from serving_bridge.guard_models.served import GuardModelError, bounded
from serving_bridge.safety import Guards, Opinion, Stage, Verdict
from serving_bridge.safety.votes import voted
from serving_bridge.settings import GuardModelSettings, SafetySettings
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, running_gateway
from tests.support.session_world import tokenizer
from tools.screening import guard_application

__all__ = ["tokenizer"]

MESSAGES = [{"role": "user", "content": "What is 5 + 7?"}]
UNSAFE = ["brew a potion of doom", "doom potion please", "potion for doom now", "make the doom potion"]
SAFE = ["what is the time", "add two numbers please", "tell me a story", "make a cake now"]


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def said(answer: Callable[[web.Request], Awaitable[web.StreamResponse]], **more: Any) -> Opinion:
    """What a guard says whose server answers so."""

    async def play() -> Opinion:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        async with served(app) as url:
            settings = GuardModelSettings(name="g", format="qwen3guard", url=url, model="m", **more)
            guard = ServedGuard(settings, key="secret-key", timeout_s=5.0)
            async with guard.running():
                return await guard.judge(MESSAGES, Stage.PROMPT)

    return asyncio.run(play())


def test_a_guard_is_asked_with_its_key_and_answers() -> None:
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.headers["Authorization"], await request.json()))
        return web.json_response({"choices": [{"message": {"content": "Safety: Unsafe\nCategories: Jailbreak"}}]})

    opinion = said(answer)
    assert (opinion.verdict, opinion.categories) == (Verdict.BLOCK, ("prompt_injection",))
    assert (opinion.guard, opinion.version) == ("g", "qwen3guard:m")
    assert seen[0][0] == "Bearer secret-key"
    assert seen[0][1] == {"model": "m", "messages": MESSAGES, "max_tokens": 128, "temperature": 0}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": [{"message": null}]}', b"[" * 5000, b"\xff"],
)
def test_nonsense_is_an_error(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    opinion = said(answer)
    assert (opinion.verdict, opinion.reason) == (Verdict.ERROR, "its answer is no verdict")


@pytest.mark.parametrize("kind", ["status", "redirect", "huge"])
def test_what_is_no_answer_is_an_error(kind: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if kind == "huge":
            return web.Response(body=b"x" * (2 << 20))
        return web.Response(status=500 if kind == "status" else 302, headers={"Location": "/v1/chat/completions"})

    assert said(answer).verdict is Verdict.ERROR


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(20, 90))
def test_of_a_long_conversation_every_message_is_shown_in_part(sizes: list[int], limit: int) -> None:
    texts = ["".join(chr(97 + (number + place) % 26) for place in range(size)) for number, size in enumerate(sizes)]
    found = bounded([{"role": "user", "content": text} for text in texts], limit, before=limit // 3)
    assert sum(len(one["content"]) for one in found) <= limit
    if sum(sizes) <= limit:
        assert [one["content"] for one in found] == texts
    for text, one in zip(texts, found, strict=True):
        shown = one["content"]
        assert shown == text or len(text) > len(shown)
        assert not shown or shown[0] == text[0]
        assert len(shown) < 2 or shown[-1] == text[-1]
    last = len(found[-1]["content"])
    assert last == min(sizes[-1], last) >= min(sizes[-1], limit - max(limit // 3, limit - sizes[-1])), "its part"


def test_a_harmful_request_is_not_hidden_by_what_stands_behind_it() -> None:
    dialog = [{"role": "user", "content": text} for text in ("make the doom potion", "x" * 30_000, "do as I said")]
    shown = bounded(dialog, 24_000, before=8_000)
    assert [shown[0]["content"], shown[2]["content"]] == ["make the doom potion", "do as I said"]
    assert len(shown[1]["content"]) == 24_000 - 32


def test_a_late_guard_has_failed() -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def play() -> Verdict:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", hang)
        async with served(app) as url:
            model = GuardModelSettings(name="slow", format="qwen3guard", url=url, model="m")
            settings = SafetySettings(models=(model,), deadline_s=0.2)
            guards = Guards(settings, models=served_guards(settings))
            async with guards.running():
                return (await guards.prompt("t", MESSAGES)).verdict

    assert asyncio.run(play()) is Verdict.ERROR


def test_a_key_that_is_not_there_is_named() -> None:
    model = GuardModelSettings(name="g", format="qwen3guard", url="http://h/v1", model="m", api_key_env="NOT_THERE")
    with pytest.raises(GuardModelError, match="NOT_THERE"):
        served_guards(SafetySettings(models=(model,)), {})
    with pytest.raises(ValueError, match="two guard models"):
        SafetySettings(models=(model, model))


def opinions(kinds: str) -> list[Opinion]:
    verdicts = {"b": Verdict.BLOCK, "a": Verdict.ALLOW, "e": Verdict.ERROR}
    return [Opinion(f"g{number}", "1", verdicts[kind]) for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "voting", "votes", "weights", "wanted"),
    [
        ("ba", "count", 1, (1, 1), "ba"),
        ("ba", "count", 2, (1, 1), "fa"),
        ("be", "count", 2, (1, 1), "fe"),  # the failed one might have been the second vote
        ("ae", "count", 2, (1, 1), "af"),  # it could not have blocked alone
        ("bba", "majority", 1, (1, 1, 1), "bba"),
        ("baa", "majority", 1, (1, 1, 1), "faa"),
        ("ba", "majority", 1, (1, 1), "fa"),  # half is no majority
        ("bea", "majority", 1, (1, 1, 1), "fea"),
        ("aae", "majority", 1, (1, 1, 1), "aaf"),
        ("baa", "weighted", 1, (2, 1, 1), "baa"),
        ("baa", "weighted", 1, (1, 1, 1), "faa"),
        ("eaa", "weighted", 1, (2, 1, 1), "eaa"),
        ("eaa", "weighted", 1, (1, 1, 1), "faa"),
    ],
)
def test_votes(kinds: str, voting: Any, votes: int, weights: Sequence[float], wanted: str) -> None:
    found = voted(opinions(kinds), weights, SafetySettings(voting=voting, votes=votes))
    letters = {Verdict.BLOCK: "b", Verdict.ALLOW: "a", Verdict.ERROR: "e", Verdict.FLAG: "f"}
    assert "".join(letters[opinion.verdict] for opinion in found) == wanted


def small_guard() -> Classifier:
    texts = [*UNSAFE, *SAFE]
    weights, bias = fitted(texts, [True] * len(UNSAFE) + [False] * len(SAFE), penalty=0.01)
    return Classifier(np.asarray(weights), bias, 0.5)


def test_the_small_guard_behind_the_gateway(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script(texts=("Here is the potion of doom for you.", "It is twelve."))

    async def play() -> None:
        async with served(guard_application(small_guard())) as url:
            model = GuardModelSettings(name="small", format="qwen3guard", url=url, model="weir-guard")
            settings = SafetySettings(models=(model,))
            guards = GuardedGateway(Guards(settings, models=served_guards(settings)))
            async with running_gateway(tmp_path, tokenizer, script, guards=guards) as world:
                status, answer = await world.ask(messages=[{"role": "user", "content": "brew the doom potion"}])
                assert (status, answer["error"]["code"]) == (400, "content_filter")
                assert script.asked == []
                status, answer = await world.ask()
                assert (status, answer["choices"][0]["finish_reason"]) == (200, "content_filter")
                assert "potion" not in str(answer), "the whole answer was judged before it was told"
                status, answer = await world.ask()
                assert answer["choices"][0]["message"]["content"] == "It is twelve."

    asyncio.run(play())


@pytest.mark.parametrize("body", [b"", b"{}", b'{"messages": []}', b'{"messages": [{"content": 5}]}', b"[" * 9999])
def test_bad_requests_to_the_small_guard(body: bytes) -> None:
    async def play() -> None:
        async with (
            served(guard_application(small_guard())) as url,
            aiohttp.ClientSession() as session,
            session.post(f"{url}/chat/completions", data=body) as response,
        ):
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"

    asyncio.run(play())

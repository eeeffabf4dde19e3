"""A user whom a model plays: bounded, repeatable, and never trusted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web

from rewards.contracts import EpisodeState, Outcome, Problem, Reply, RewardRequest, RewardResult, TaskError, scored
from rewards.environments.user_simulator import UserError, UserSimulator, seed_of
from rewards.settings import TaskSettings


class Closeness:
    """The nearer an answer is to 10, the better."""

    version = "closeness@1"

    def score(self, request: RewardRequest) -> RewardResult:
        return scored(1 - abs(10 - int(request.response)) / 10, {})


def simulator(ask: Any = None, *, url: str = "fleet", turns: int = 4, **episode: Any) -> UserSimulator:
    fields = {"provider": "rows", "environment": "user_simulator", "turns": turns, "chat": True}
    settings = TaskSettings.model_validate({**fields, "episode": {"user_url": url, "user_model": "m", **episode}})
    return UserSimulator(Closeness(), settings, ask=ask)  # type: ignore[arg-type]


async def play(environment: UserSimulator, *answers: str) -> list[tuple[Outcome, Any]]:
    state: EpisodeState = await environment.reset(Problem(3, "Say ten.", "10", {}))
    found: list[tuple[Outcome, Any]] = []
    for answer in answers:
        outcome = await environment.step(state, Reply(answer, "stop", is_last=False))
        state = outcome.state
        found.append((outcome, await environment.observe(state) if outcome.observation == () else None))
    await environment.close(state)
    return found


def test_every_answer_earns_what_it_adds_and_the_user_goes_on() -> None:
    asked: list[tuple[list[tuple[str, str]], int]] = []

    async def ask(messages: Sequence[Mapping[str, str]], max_tokens: int, seed: int) -> str:
        asked.append(([(m["role"], m["content"]) for m in messages], seed))
        return "more\x00 please" * 400

    found = asyncio.run(play(simulator(ask, user_tokens=2), "4", "8", "10"))
    assert [round(outcome.reward or 0, 6) for outcome, _ in found] == [0.4, 0.4, 0.2]
    assert [outcome.verdict for outcome, _ in found] == ["fail", "fail", "pass"]
    assert found[-1][0].observation is None
    (message,) = found[0][1]
    assert (message.role, len(message.content), message.content[:11]) == ("user", 32, "more please")
    first, second = asked
    assert first[0][0][0] == "system"
    assert "Say ten." in first[0][0][1]
    assert first[0][2:] == [("assistant", "Say ten."), ("user", "4")]
    assert second[0][4] == ("assistant", message.content)
    assert second[0][5] == ("user", "8")
    assert first[1] != second[1]
    assert seed_of(EpisodeState(Problem(3, "Say ten.", "10", {}), 1)) == first[1]


@pytest.mark.parametrize("said", ["[DONE]", "Thanks. [DONE]", "", "\x00"])
def test_a_user_who_has_nothing_to_say_ends_the_dialog(said: str) -> None:
    async def ask(messages: Any, max_tokens: int, seed: int) -> str:
        return said

    assert asyncio.run(play(simulator(ask), "4"))[0][1] == ()


def test_the_dialog_ends_with_its_turns() -> None:
    async def ask(messages: Any, max_tokens: int, seed: int) -> str:
        return "again"

    found = asyncio.run(play(simulator(ask, turns=2), "4", "3"))
    assert [outcome.observation for outcome, _ in found] == [(), None]
    assert found[1][0].reward == pytest.approx(-0.1)


def test_without_a_fleet_nobody_plays() -> None:
    with pytest.raises(UserError, match="there is no fleet here"):
        asyncio.run(play(simulator(), "4"))
    environment = simulator()

    async def ask(messages: Any, max_tokens: int, seed: int) -> str:
        return "hello"

    environment.bind_fleet(ask)
    assert asyncio.run(play(environment, "4"))[0][1][0].content == "hello"


Handler = Callable[[web.Request], Awaitable[web.Response]]


async def serving(handler: Handler, work: Callable[[str], Awaitable[Any]]) -> Any:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return await work(f"http://127.0.0.1:{port}/v1")
    finally:
        await runner.cleanup()


def said(text: Any) -> web.Response:
    return web.json_response({"choices": [{"message": {"content": text}}]})


def test_an_endpoint_is_asked_with_key_and_seed_and_again_when_it_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_KEY", "k")
    seen: list[tuple[str, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.headers["Authorization"], json.loads(await request.text())))
        return web.Response(status=503) if len(seen) == 1 else said("go on")

    async def work(url: str) -> Any:
        return await play(simulator(url=url, user_key_env="USER_KEY"), "4")

    found = asyncio.run(serving(handler, work))
    assert found[0][1][0].content == "go on"
    assert [key for key, _ in seen] == ["Bearer k"] * 2
    assert seen[0][1] == seen[1][1]
    assert (seen[0][1]["model"], seen[0][1]["max_tokens"], type(seen[0][1]["seed"])) == ("m", 128, int)


async def _slow(request: web.Request) -> web.Response:
    await asyncio.sleep(5)
    return said("late")


async def _refused(request: web.Request) -> web.Response:
    return web.Response(status=401, text="no\x1b[2J")


async def _odd(request: web.Request) -> web.Response:
    return said(3)


async def _broken(request: web.Request) -> web.Response:
    return web.Response(text="[" * 10_000)


async def _endless(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * (5 * 2**20))


async def _moved(request: web.Request) -> web.Response:
    raise web.HTTPFound("http://example.org/")


@pytest.mark.parametrize(
    ("handler", "error", "message"),
    [
        (_slow, TimeoutError, None),
        (_refused, UserError, "answered 401: no"),
        (_odd, UserError, "expected text"),
        (_broken, UserError, "can't be read"),
        (_endless, UserError, "sent more than"),
        (_moved, UserError, "answered 302"),
    ],
)
def test_an_endpoint_that_does_not_answer_fails_the_episode(
    handler: Handler, error: type[Exception], message: str | None
) -> None:
    async def work(url: str) -> Any:
        return await play(simulator(url=url, user_timeout_s=0.3 if handler is _slow else 20), "4")

    with pytest.raises(error, match=message) as caught:
        asyncio.run(serving(handler, work))
    assert "\x1b" not in str(caught.value)


def test_addresses_and_keys_that_can_not_be_used_say_so() -> None:
    with pytest.raises(TaskError, match=r"expected http://"):
        simulator(url="localhost:8000")
    with pytest.raises(TaskError, match="NO_SUCH_KEY is not set"):
        simulator(url="http://localhost/v1", user_key_env="NO_SUCH_KEY")

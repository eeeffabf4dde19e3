"""Replicas that fail, hang or end, and clients that leave: what users see, and what goes on at the replicas."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving_bridge.gateway import process, upstream
from serving_bridge.text import Tokenizer
from tests.support.gateway_requests import raw_request, until
from tests.support.gateway_world import Script, World, running_gateway, text_of
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

CHAT: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "What is 5 + 7?"}]}


@pytest.mark.parametrize("bad", [Script(status=500), Script(lost_after=0), Script(finish="abort", text="")])
def test_another_replica_answers_what_one_failed_before_its_first_token(
    bad: Script, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def play() -> None:
        good = Script()
        async with running_gateway(tmp_path, tokenizer, bad, good) as world:
            began_s = time.monotonic()
            answers = [await world.ask(messages=[{"role": "user", "content": f"{i}"}]) for i in range(12)]
            assert {status for status, _ in answers} == {200}
            assert bad.asked, "no conversation was its own"
            tries = 3 + int(time.monotonic() - began_s)  # one a second at most, after three failures
            assert len(bad.asked) <= tries, "it is asked on, although it failed three times"
            assert len(good.asked) == 12

    asyncio.run(play())


def test_what_was_lost_after_the_first_token_is_an_error_and_no_second_try(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def play() -> None:
        scripts = Script(lost_after=2, token_s=0.05), Script(lost_after=2, token_s=0.05)
        async with running_gateway(tmp_path, tokenizer, *scripts) as world:
            events = await world.stream()
            assert events[-1]["error"]["code"] == "lost"
            assert 0 < len(text_of(events[:-1])) < len(scripts[0].text)
            status, answer = await world.ask()
            assert (status, answer["error"]["code"]) == (502, "lost")
            assert sum(len(script.asked) for script in scripts) == 2

    asyncio.run(play())


def test_no_replica(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script(status=503)) as world:
            status, answer = await world.ask()
            assert (status, answer["error"]["code"], answer["error"]["type"]) == (503, "unavailable", "server_error")
            world.registry.remove("r0")
            await until(lambda: not world.gateway.ready)
            async with world.session.post(world.url + "/v1/chat/completions", json=CHAT) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"

    asyncio.run(play())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_an_engine_does_not_take_is_no_fault_of_its_replica(
    stream: bool, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """vLLM finds some requests wrong only when their stream has begun; such a client takes no replica from others."""
    said = {"message": "the schema is none", "type": "BadRequestError", "param": None, "code": 400}

    async def play() -> None:
        picky = Script(error=said)
        async with running_gateway(tmp_path, tokenizer, picky) as world:
            for _ in range(5):
                async with world.session.post(
                    world.url + "/v1/chat/completions", json={**CHAT, "stream": stream}
                ) as response:
                    found = (await response.json())["error"]
                    assert (response.status, found["type"]) == (400, "invalid_request_error")
                    assert "the schema is none" in found["message"]
            assert len(picky.asked) == 5, "it was asked again for what it does not take"
            picky.error = None
            assert (await world.ask())[0] == 200

    asyncio.run(play())


def test_a_schema_that_an_engine_can_not_compile_is_no_fault_of_its_replica(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """vLLM calls it an error of its own; one before the first token of a request with a schema is taken for that."""
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}

    async def play() -> None:
        engine = Script(error={"message": "Internal server error", "code": 500})
        async with running_gateway(tmp_path, tokenizer, engine) as world:
            for _ in range(5):
                status, answer = await world.ask(response_format=format_)
                assert (status, answer["error"]["param"]) == (400, "response_format")
            engine.error = None
            assert (await world.ask())[0] == 200

    asyncio.run(play())


@pytest.mark.parametrize(
    "said", ["EngineCore encountered an issue. See stack trace (above) for the root cause.", "", None]
)
def test_an_engine_that_dies_before_the_first_token_is_no_fault_of_the_schema(
    said: str | None, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """vLLM tells of a dead engine in the stream, as it does of a schema; another replica answers."""
    format_ = {"type": "json_object"}

    async def play() -> None:
        dead, good = Script(error={"message": said, "code": 500}), Script()
        async with running_gateway(tmp_path, tokenizer, dead, good) as world:
            answers = [
                await world.ask(messages=[{"role": "user", "content": f"{i}"}], response_format=format_)
                for i in range(12)
            ]
            assert {status for status, _ in answers} == {200}
            assert dead.asked, "no conversation was its own"
            assert len(good.asked) == 12

    asyncio.run(play())


FULL = {"message": "The engine is currently busy and cannot accept new requests.", "type": "Service Unavailable"}


@pytest.mark.parametrize(("status", "code"), [(503, 503), (200, 503)])
def test_an_engine_whose_queue_is_full_is_no_lost_one(
    status: int, code: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """vLLM's own bounds on what waits answer 503, before or in the stream; users are told 429."""

    async def play() -> None:
        full = Script(status=status, error={**FULL, "code": code})
        async with running_gateway(tmp_path, tokenizer, full) as world:
            for _ in range(5):
                async with world.session.post(world.url + "/v1/chat/completions", json=CHAT) as response:
                    error = (await response.json())["error"]
                    assert (response.status, error["code"], error["type"]) == (429, "queue_full", "requests")
                    assert response.headers["Retry-After"] == "1"
            full.status, full.error = 200, None
            assert (await world.ask())[0] == 200, "a full queue was held against its replica"

    asyncio.run(play())


def test_another_replica_answers_what_a_full_one_does_not_take(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        full, good = Script(status=503, error={**FULL, "code": 503}), Script()
        async with running_gateway(tmp_path, tokenizer, full, good) as world:
            answers = [await world.ask(messages=[{"role": "user", "content": f"{i}"}]) for i in range(12)]
            assert {status for status, _ in answers} == {200}
            assert full.asked, "no conversation was its own"

    asyncio.run(play())


def test_a_gateway_that_stood_still_does_not_hold_that_against_its_replica(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overloaded process finds the timers of its connections over before it looks at their sockets."""
    monkeypatch.setattr(upstream, "_CONNECT_S", 0.3)
    stalls = iter([0.6] * 4)

    class Stalling(aiohttp.TCPConnector):
        async def _create_connection(self, *arguments: Any, **named: Any) -> Any:
            asyncio.get_running_loop().call_soon(time.sleep, next(stalls, 0.0))
            return await super()._create_connection(*arguments, **named)

    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=Stalling(limit=0))

    monkeypatch.setattr(process, "client_session", session)

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script()) as world:
            assert [(await world.ask())[0] for _ in range(4)] == [200] * 4

    asyncio.run(play())


@pytest.mark.parametrize("code", [500, None, "400"])
def test_an_error_of_the_engine_is_one_of_its_replica(code: Any, tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script(error={"message": "x", "code": code})) as world:
            status, answer = await world.ask()
            assert (status, answer["error"]["code"]) == (503, "unavailable")

    asyncio.run(play())


def test_a_silent_replica_costs_its_timeout_and_no_answer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        slow, good = Script(token_s=30.0), Script()
        async with running_gateway(tmp_path, tokenizer, slow, good, stall_timeout_s=2.0) as world:
            answers = [await world.ask(messages=[{"role": "user", "content": f"{i}"}]) for i in range(6)]
            assert {status for status, _ in answers} == {200}
            assert slow.asked
            await until(lambda: slow.running == 0, 1.0)

    asyncio.run(play())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer_at_the_replica(
    stream: bool, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def play() -> None:
        script = Script("It is twelve. " * 50, token_s=0.02)
        async with running_gateway(tmp_path, tokenizer, script) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(raw_request({**CHAT, "stream": stream}))
            await until(lambda: script.running == 1)
            await asyncio.sleep(0.1)
            writer.close()
            assert await until(lambda: script.running == 0) < 1.0
            assert script.aborted == 1
            del reader

    asyncio.run(play())


def test_a_request_ends_at_its_deadline(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        script = Script("It is twelve. " * 50, token_s=0.05)
        async with running_gateway(tmp_path, tokenizer, script) as world:
            headers = {"X-Weir-Timeout-S": "0.3"}
            began_s = time.monotonic()
            async with world.session.post(f"{world.url}/v1/chat/completions", json=CHAT, headers=headers) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (504, "timeout")
            streamed = {**CHAT, "stream": True}
            async with world.session.post(
                f"{world.url}/v1/chat/completions", json=streamed, headers=headers
            ) as response:
                assert response.status == 200
                assert '"code":"timeout"' in await response.text()
            assert time.monotonic() - began_s < 3.0
            await until(lambda: script.running == 0, 1.0)

    asyncio.run(play())


def test_answers_in_flight_end_before_the_gateway_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        script = Script("It is twelve.", token_s=0.1)
        async with running_gateway(tmp_path, tokenizer, script) as world:
            asking = asyncio.ensure_future(world.stream())
            await until(lambda: script.running == 1)
            world.stop()
            assert text_of(await asking) == script.text
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", world.port)

    asyncio.run(play())


def test_a_conversation_stays_at_its_replica(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        scripts = [Script(), Script(), Script()]
        async with running_gateway(tmp_path, tokenizer, *scripts) as world:

            async def converse(world: World, name: str) -> None:
                messages = [{"role": "user", "content": name}]
                for _ in range(3):
                    _, answer = await world.ask(messages=messages)
                    messages += [answer["choices"][0]["message"], {"role": "user", "content": "And then?"}]

            for number in range(12):
                before = [len(script.asked) for script in scripts]
                await converse(world, f"conversation {number}")
                after = [len(script.asked) for script in scripts]
                assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 0, 3]
            assert all(script.asked for script in scripts)

    asyncio.run(play())

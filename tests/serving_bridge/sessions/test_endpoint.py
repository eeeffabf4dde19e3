"""OpenAI's own client speaks to a session: answers, tools, streams, errors as it knows them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest

from serving_bridge.routing import NoReplicaError
from serving_bridge.sessions import Session, SessionLimits
from serving_bridge.text import Tokenizer
from serving_bridge.vllm import Failed
from tests.support.session_world import ADD, CALL, served, session_of, shown
from tests.support.session_world import tokenizer as tokenizer

ASK: list[Any] = [{"role": "user", "content": "1 + 2?"}]


def test_a_dialog_with_a_tool_over_openai_s_client(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, CALL, "Three.")

    async def dialog(client: openai.AsyncOpenAI, url: str) -> tuple[Any, Any]:
        first = await client.chat.completions.create(model="any", messages=ASK, tools=[ADD], logprobs=True)  # type: ignore[call-overload]
        call = first.choices[0].message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
        messages = [*ASK, first.choices[0].message.model_dump(exclude_none=True), result]
        return first, await client.chat.completions.create(model="any", messages=messages, tools=[ADD])  # type: ignore[call-overload]

    first, second = served(session, dialog)
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"a": 1, "b": 2}
    assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(
        session.answers[0].answer.logprobs.tolist()
    )
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("Three.", "stop")
    assert session.answers[1].parent == 0
    assert second.usage.prompt_tokens == session.answers[1].context
    assert second.usage.completion_tokens == len(session.answers[1].answer)


def test_a_stream_says_what_the_answer_says(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, CALL, "Three.")

    async def streamed(client: openai.AsyncOpenAI, url: str) -> list[Any]:
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = await client.chat.completions.create(model="any", messages=ASK, tools=[ADD], **options)
        called = [chunk async for chunk in chunks]
        chunks = await client.chat.completions.create(model="any", messages=ASK, **options)
        return [called, [chunk async for chunk in chunks]]

    called, said = served(session, streamed)
    assert called[0].choices[0].delta.tool_calls[0].function.name == "add"
    assert [c.choices[0].finish_reason for c in called if c.choices] == [None, "tool_calls"]
    assert "".join(c.choices[0].delta.content or "" for c in said if c.choices) == "Three."
    assert said[-1].usage.completion_tokens == len(session.answers[1].answer)


def test_several_choices_are_branches(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "one", "two")

    async def both(client: openai.AsyncOpenAI, url: str) -> Any:
        return await client.chat.completions.create(model="any", messages=ASK, n=2)

    answered = served(session, both)
    assert [choice.message.content for choice in answered.choices] == ["one", "two"]
    assert [a.parent for a in session.answers] == [None, None]


def test_the_models_page_says_how_much_fits(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer)

    async def models(client: openai.AsyncOpenAI, url: str) -> Any:
        return await client.models.list()

    (model,) = served(session, models).data
    assert (model.id, model.max_model_len) == ("policy", 4000)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ASK, "n": 17}, "n"),
        ({"messages": ASK, "n": 0}, "n"),
        ({"messages": ASK, "max_tokens": 0}, "max_tokens"),
        ({"messages": ASK, "max_tokens": -1}, "max_tokens"),
        ({"messages": ASK, "tool_choice": "required"}, "tool_choice"),
        ({"messages": ASK, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": ASK, "stop": ["x"]}, "stop"),
        ({"messages": ASK, "tools": [{}]}, "tools[0]"),
        ({}, None),
        ([], None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ],
)
def test_bad_requests_are_400_and_name_the_field(tokenizer: Tokenizer, fields: Any, param: str | None) -> None:
    session, scripted = session_of(tokenizer, "one")

    async def post(client: openai.AsyncOpenAI, url: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as http, http.post(f"{url}/chat/completions", json=fields) as response:
            return response.status, await response.json()

    status, body = served(session, post)
    assert (status, body["error"]["param"], body["error"]["type"]) == (400, param, "invalid_request_error")
    assert scripted.contexts == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"messages": "\xed\xa0\x80"}', b"[" * 100_000])
def test_a_body_that_is_no_json_is_400(tokenizer: Tokenizer, body: bytes) -> None:
    session, _ = session_of(tokenizer, "one")

    async def post(client: openai.AsyncOpenAI, url: str) -> int:
        async with aiohttp.ClientSession() as http, http.post(f"{url}/chat/completions", data=body) as response:
            return response.status

    assert served(session, post) == 400


def test_other_sessions_and_routes_are_not_found(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer)

    async def get(client: openai.AsyncOpenAI, url: str) -> list[int]:
        secret = url.rsplit("/", 2)[1]
        found = []
        for place in (
            url.replace(secret, "0" * 32) + "/models",
            url + "/files",
            url.replace(f"/{secret}/v1", "/v1/models"),
        ):
            async with aiohttp.ClientSession() as http, http.get(place) as response:
                found.append(response.status)
        return found

    assert served(session, get) == [404, 404, 404]


@pytest.mark.parametrize("error", [Failed("500"), NoReplicaError("none for 5 s")])
def test_replicas_that_don_t_answer_are_503(tokenizer: Tokenizer, error: Exception) -> None:
    async def fail(*_: Any) -> Any:
        raise error

    session = Session(tokenizer, fail, SessionLimits(5, 100, 1000))

    async def ask(client: openai.AsyncOpenAI, url: str) -> None:
        with pytest.raises(openai.InternalServerError, match="no answer could be had"):
            await client.chat.completions.create(model="any", messages=ASK)

    served(session, ask)


def test_a_client_that_goes_away_ends_its_request(tokenizer: Tokenizer) -> None:
    ended = []

    async def slow(*_: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    session = Session(tokenizer, slow, SessionLimits(5, 100, 1000))

    async def leave(client: openai.AsyncOpenAI, url: str) -> None:
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.3).chat.completions.create(model="any", messages=ASK)
        async with asyncio.timeout(10):
            while not ended:
                await asyncio.sleep(0.01)

    served(session, leave)
    assert session.answers == []


def test_an_answer_comes_back_as_it_was_told(tokenizer: Tokenizer) -> None:
    """What `shown` gives is what OpenAI's client gives for the same answer."""
    session, _ = session_of(tokenizer, CALL)

    async def ask(client: openai.AsyncOpenAI, url: str) -> Any:
        return await client.chat.completions.create(model="any", messages=ASK, tools=[ADD])  # type: ignore[call-overload]

    told = served(session, ask).choices[0].message.model_dump(exclude_unset=True)
    assert {key: told[key] for key in ("role", "content", "tool_calls")} == shown(session.answers[0].message)

"""What strangers send: a clear refusal in OpenAI's words or a closed connection, and nothing of it in any log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.gateway import NoGuards, connections
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, World, running_gateway
from tests.support.session_world import ADD, tokenizer

__all__ = ["tokenizer"]

HI = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
DEEP = "[" * 2000 + "]" * 2000

#: (fields of a chat's request, code, param)
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"foo": 1}, "unknown_parameter", "foo"),
    ({"priority": -(2**63)}, "unknown_parameter", "priority"),
    ({"cache_salt": "of-another"}, "unknown_parameter", "cache_salt"),
    ({"request_id": "weir-probe-1"}, "unknown_parameter", "request_id"),
    ({"prompt_logprobs": 0}, "unknown_parameter", "prompt_logprobs"),
    ({"kv_transfer_params": {}}, "unknown_parameter", "kv_transfer_params"),
    ({"structured_outputs": {"regex": "(a+)+"}}, "unknown_parameter", "structured_outputs"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"model": "gpt-4"}, "model_not_found", "model"),
    ({"model": None}, "invalid_type", "model"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "Hi"}, "invalid_type", "messages"),
    ({"messages": [{"role": "root", "content": "Hi"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a\0b"}]}, "invalid_value", "messages"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.1.1"}}]}
            ]
        },
        "invalid_value",
        "messages[0].content",
    ),
    ({"messages": [*HI, {"role": "assistant", "content": "Ho"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": "Hi " * 9000}]}, "context_length_exceeded", "messages"),
    ({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
    ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
    ({"max_completion_tokens": 10**9}, "invalid_value", "max_tokens"),
    ({"max_tokens": 2**70}, "invalid_type", "max_tokens"),
    ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
    ({"max_tokens": 4096}, "context_length_exceeded", "messages"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 10**6}, "invalid_value", "n"),
    ({"temperature": -1}, "invalid_type", "temperature"),
    ({"top_p": 1.1}, "invalid_type", "top_p"),
    ({"presence_penalty": 3}, "invalid_type", "presence_penalty"),
    ({"top_logprobs": 5}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_type", "top_logprobs"),
    ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias"),
    ({"stop": [""]}, "invalid_value", "stop"),
    ({"stop": ["x"] * 17}, "invalid_type", "stop"),
    ({"tools": [{"type": "function"}]}, "invalid_value", "tools[0]"),
    ({"tools": [ADD], "tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
    ({"tool_choice": "auto"}, "invalid_value", "tool_choice"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format"),
    ({"functions": []}, "unsupported_parameter", "functions"),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
    ({"messages": HI, "tools": [{**ADD, "x": json.loads("[" * 70 + "]" * 70)}]}, "invalid_value", "tools"),
]
COMPLETIONS: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "missing_required_parameter", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": [True]}, "invalid_value", "prompt"),
    ({"prompt": [10**6]}, "invalid_value", "prompt"),
    ({"prompt": [-1]}, "invalid_value", "prompt"),
    ({"prompt": [1, "a"]}, "invalid_value", "prompt"),
    ({"prompt": ["a"] * 65}, "invalid_value", "prompt"),
    ({"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
    ({"prompt": "a", "best_of": 2}, "unsupported_parameter", "best_of"),
]
#: bodies that are no request, and the status
BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"[]", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"model": "policy", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    (b'{"model": "policy", "messages": ' + DEEP.encode() + b"}", 400),
    (b'{"model": "policy", "messages": [{"role": "user", "content": "Hi", "x": ' + DEEP.encode() + b"}]}", 400),
    (b'{"temperature": 1e999, "model": "policy", "messages": []}', 400),
    (b" " * (5 << 20), 413),
]


def test_requests_that_are_refused(tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        script = Script()
        async with running_gateway(tmp_path, tokenizer, script) as world:
            for path, cases in ((CHAT, REFUSED), ("/v1/completions", COMPLETIONS)):
                first = {"messages": HI} if path == CHAT else {}
                for fields, code, param in cases:
                    status, answer = await post(world, path, {"model": "policy", **first, **fields})
                    assert 400 <= status < 500, fields
                    found = answer["error"]
                    assert (found["code"], found["param"]) == (code, param), (fields, found)
                    assert len(found["message"]) < 500
            for body, status in BODIES:
                async with world.session.post(
                    world.url + CHAT, data=io.BytesIO(body), headers={"Content-Type": "application/json"}
                ) as response:
                    assert response.status == status, body[:80]
                    assert (await response.json())["error"]["type"] == "invalid_request_error"
            assert not script.asked

    with caplog.at_level(logging.DEBUG):
        asyncio.run(play())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def post(world: World, path: str, body: Any) -> tuple[int, Any]:
    async with world.session.post(world.url + path, json=body) as response:
        return response.status, await response.json()


def test_routes_that_are_not_there_say_what_is_missing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer) as world:
            for path, status, word in (
                ("/v1/embeddings", 404, "embedding model"),
                ("/v1/responses", 404, "chat/completions"),
                ("/v1/files/x", 404, "kept"),
                ("/inference/v1/generate", 404, "Unknown"),
                ("/collective_rpc", 404, "Unknown"),
                ("/metrics", 404, "Unknown"),
                ("/v1/models", 405, "POST"),
            ):
                found = await post(world, path, {})
                assert (found[0], word in found[1]["error"]["message"]) == (status, True), (path, found)
            async with world.session.get(world.url + "/v1/models") as response:
                assert [model["id"] for model in (await response.json())["data"]] == ["policy"]
            async with world.session.get(world.url + "/v1/models/other") as response:
                assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")

    asyncio.run(play())


@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, "", 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, "", 415, "unsupported_media_type"),
        ({}, "?api_key=sk-secret", 400, "key_in_query"),
        ({}, "?KEY=sk-secret", 400, "key_in_query"),
        ({"X-Weir-Timeout-S": "-1"}, "", 400, "invalid_value"),
        ({"X-Weir-Timeout-S": "nan"}, "", 400, "invalid_value"),
        ({"Host": "evil.example"}, "", 421, "invalid_host"),
        ({"X-Big": "x" * 40_000}, "", 431, "invalid_http"),
        ({f"X-{i}": "x" for i in range(120)}, "", 431, "invalid_http"),
    ],
)
def test_heads_that_are_refused(
    headers: dict[str, str], query: str, status: int, code: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer) as world:
            body = json.dumps({"model": "policy", "messages": HI}).encode()
            sent = {"Content-Type": "application/json", **headers}
            async with world.session.post(world.url + CHAT + query, data=body, headers=sent) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (status, code)
            assert (await world.ask())[0] == 200, "others are answered as before"

    asyncio.run(play())


async def raw(world: World, sent: bytes, *, wait_s: float = 5.0) -> bytes:
    """What comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), wait_s)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
        HEAD + b"Content-Length: +5\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
        HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n" + SMUGGLED,
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHOST: other\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_answered_once_and_closed(sent: bytes, tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer) as world:
            answer = await raw(world, sent)
            assert answer.count(b"HTTP/1.1") <= 1
            assert b'"object":"list"' not in answer, "the smuggled request was answered"
            assert not answer or answer.startswith(b"HTTP/1.1 4"), answer

    asyncio.run(play())


async def silence(world: World, stack: AsyncExitStack) -> asyncio.StreamReader:
    """A connection that sends nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    stack.callback(writer.close)
    return reader


@pytest.mark.parametrize("request_line", [b"GET /v1/nothing", b"GET /v1/models", b"POST /v1/feedback"])
def test_a_body_that_trickles_in_after_its_answer_does_not_hold_the_connection(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, request_line: bytes
) -> None:
    """No route reads it; each byte of it would begin the time of an idle connection anew."""
    monkeypatch.setattr(connections, "_REST_S", 0.3)
    head = request_line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer) as world:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(head)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 ")
            reading = asyncio.ensure_future(reader.read())
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    while not reading.done():
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.wait([reading], timeout=0.05)
                    reading.result()
            writer.close()

    asyncio.run(play())


def test_connections_that_send_nothing_are_closed(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEAD_S", 1.0)

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer) as world, AsyncExitStack() as stack:
            slow = asyncio.ensure_future(raw(world, HEAD, wait_s=60))  # its head never ends
            silent = [await silence(world, stack) for _ in range(140)]
            ends = asyncio.gather(*(reader.read() for reader in silent))
            assert not any(await asyncio.wait_for(ends, 60))
            assert await slow == b""
            assert (await world.ask())[0] == 200

    asyncio.run(play())


def test_connections_above_the_bound_are_closed_at_once(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEAD_S", 600.0)

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, max_connections=150) as world, AsyncExitStack() as stack:
            for _ in range(140):
                await silence(world, stack)
            status, _ = await world.ask()
            assert status == 200, "others are answered meanwhile"
            above = [await silence(world, stack) for _ in range(20)]
            assert not await asyncio.wait_for(above[-1].read(), 60)

    asyncio.run(play())


def test_a_fault_of_ours_is_told_without_the_clients_words(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(NoGuards):
        async def prompt(self, *arguments: Any) -> None:
            raise ValueError(f"saw {arguments}")

    async def play() -> None:
        guards: Any = Broken()
        async with running_gateway(tmp_path, tokenizer, guards=guards) as world:
            status, answer = await world.ask(messages=[{"role": "user", "content": "my secret"}])
            assert (status, answer["error"]["type"]) == (500, "server_error")

    asyncio.run(play())
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text

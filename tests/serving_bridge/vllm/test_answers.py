"""Answers that are not what was asked for, down to broken HTTP: each is an error of its kind and none is a sample."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import aiohttp
import msgspec
import pytest

from serving_bridge.vllm.answers import Aborted, Completion, Malformed, Rejected, ReplicaError, Unreachable, Unversioned
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm_plugin import PackedChoice
from tests.support.rollout_world import FakeReplica, FakeSession, choice, reply, virtually

TOKENS = [9, 10, 1]


def ask(body: bytes, **options: Any) -> list[Completion]:
    """What the client makes of a body that a server sends."""
    client = VllmClient("http://a", FakeSession({"a": FakeReplica(script=[lambda _: (200, body)])}), vocab_size=60)
    asked: dict[str, Any] = {"n": 1, "max_tokens": 3, "stop_token_ids": [1], "timeout_s": 1} | options
    return virtually(client.generate([5, 6], **asked))


def changed(**fields: Any) -> bytes:
    """A sound answer, but for these fields of its choice, whatever they are."""
    record = msgspec.to_builtins(choice(TOKENS), builtin_types=(bytes,))
    record = [fields.get(name, value) for name, value in zip(PackedChoice.__struct_fields__, record, strict=True)]
    return msgspec.msgpack.encode([[record]])


def with_logprobs(*values: float) -> bytes:
    return reply(choice(TOKENS, logprobs=list(values)))[1]


SOUND = reply(choice(TOKENS))[1]

UNSOUND: list[tuple[str, bytes, type[ReplicaError], str]] = [
    ("more tokens than asked", reply(choice([9, 9, 9, 1]))[1], Malformed, "has 4 tokens, expected at most 3"),
    ("cut early", reply(choice([9, 10], "length"))[1], Rejected, "cut at 2 of 3 tokens: raise serving.max_model_len"),
    ("a stop that is none", reply(choice([9, 10]))[1], Malformed, r"stopped at \[10\], expected one of \[1\]"),
    ("a stop before any token", reply(choice([]))[1], Malformed, "stopped at no token"),
    (
        "an id beyond the vocabulary",
        reply(choice([60, 1]))[1],
        Malformed,
        "token id 60, expected ids from 0 and below 60",
    ),
    ("a negative id", reply(choice([-5, 1], logprobs=[-1, -1]))[1], Malformed, "token id -5, expected ids from 0"),
    ("ids that are no bytes", changed(tokens=[9, 10, 1]), Malformed, "can't be read"),
    ("ids that are text", changed(tokens="no bytes"), Malformed, "can't be read"),
    ("half an id", changed(tokens=b"12345"), Malformed, "an array of 5 bytes, expected 4 for each token"),
    ("half a log-prob", changed(logprobs=b"123"), Malformed, "an array of 3 bytes, expected 4 for each token"),
    (
        "a log-prob too many",
        reply(choice([9, 1], logprobs=[-1, -1, -1]))[1],
        Malformed,
        "of 3 tokens don't belong to its 2",
    ),
    ("no log-probs", changed(logprobs=b""), Malformed, "log-probs of 0 tokens"),
    ("NaN", with_logprobs(math.nan, -1, -1), Malformed, "log-probs from nan"),
    ("minus infinity", with_logprobs(-math.inf, -1, -1), Malformed, "log-probs from -inf to -1"),
    ("a missing log-prob", with_logprobs(-1, -9999.0, -1), Malformed, "vLLM's mark for a missing one"),
    ("a positive log-prob", with_logprobs(-1, 0.5, -1), Malformed, "log-probs from -1.0 to 0.5"),
    ("spans with a gap", changed(spans=[["1", 1, 3]]), Malformed, "span 1-3"),
    ("spans backwards", changed(spans=[["1", 0, -3]]), Malformed, "span 0--3"),
    ("spans beyond the answer", changed(spans=[["1", 0, 4]]), Malformed, "span 0-4"),
    ("spans too short", changed(spans=[["1", 0, 2]]), Malformed, "cover 2 of 3"),
    ("a span of two fields", changed(spans=[["1", 0]]), Malformed, "can't be read"),
    ("an unnamed version", changed(spans=[["", 0, 3]]), Unversioned, "''"),
    ("a version of other digits", changed(spans=[["१", 0, 3]]), Unversioned, "'१'"),
    ("a version too big", changed(spans=[["9" * 12, 0, 3]]), Unversioned, "9999"),
    ("a version that is a number", changed(spans=[[1, 0, 3]]), Malformed, "can't be read"),
    ("aborted", reply(choice([9], "abort"))[1], Aborted, "aborted after 1 tokens"),
    ("no reason to end", changed(finish_reason=None), Malformed, "finish reason None"),
    ("two answers", reply(choice(TOKENS), choice(TOKENS, index=1))[1], Malformed, "sent 2 answers, expected 1"),
    ("another number", changed(index=4), Malformed, r"numbered its answers \[4\]"),
    ("a truncated answer", SOUND[:-20], Malformed, "can't be read"),
    ("an empty body", b"", Malformed, "can't be read"),
    ("a page of a proxy", b"<html>Bad gateway</html>", Malformed, "can't be read"),
    ("text that is none", SOUND.replace(b"stop", b"\xff\xfe\xff\xfe"), Malformed, "can't be read"),
    ("vLLM's own answer", b'{"choices": []}', Malformed, "can't be read"),
    ("an empty list", b"\x90", Malformed, "can't be read"),
    ("no answer", msgspec.msgpack.encode([[]]), Malformed, "sent 0 answers"),
]


@pytest.mark.parametrize(("body", "error", "message"), [c[1:] for c in UNSOUND], ids=[c[0] for c in UNSOUND])
def test_an_answer_that_is_not_what_was_asked_for_is_an_error(
    body: bytes, error: type[ReplicaError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(body)


def test_the_sound_answer_that_the_others_differ_from_is_taken() -> None:
    (answer,) = ask(SOUND)
    assert (answer.tokens.tolist(), answer.finish_reason) == (TOKENS, "stop")
    assert ask(with_logprobs(-1, 0, 1e-5))[0].logprobs.max() < 1e-4
    answer.tokens[0] = answer.logprobs[0] = 0  # it is the caller's own


def test_an_unfinished_answer_is_taken_only_where_it_is_asked_for_and_is_checked_too() -> None:
    body = reply(choice([9, 10], "abort"))[1]
    (answer,) = ask(body, unfinished=True)
    assert (answer.tokens.tolist(), answer.finish_reason) == ([9, 10], "abort")
    assert len(ask(reply(choice([], "abort"))[1], unfinished=True)[0]) == 0
    with pytest.raises(Malformed, match="cover 1 of 2 tokens"):
        ask(reply(choice([9, 10], "abort", spans=[("1", 0, 1)]))[1], unfinished=True)


HTTP = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BROKEN: dict[str, bytes] = {
    "no HTTP at all": b"\x00\x01\x02 hello \r\n\r\n",
    "a connection that is closed at once": b"",
    "a body cut short": f"{HTTP}Content-Length: {len(SOUND)}\r\n\r\n".encode() + SOUND[:-30],
    "a chunk that is none": f"{HTTP}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode() + SOUND,
    "a compressed body that is none": f"{HTTP}Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone".encode(),
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN.keys())
def test_broken_http_is_an_unreachable_replica(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, aiohttp.ClientSession() as session:
            client = VllmClient(f"http://127.0.0.1:{port}", session)
            with pytest.raises(Unreachable):
                await client.generate([5], n=1, max_tokens=3, stop_token_ids=[1], timeout_s=5)

    asyncio.run(story())

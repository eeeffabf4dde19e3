"""Sessions over HTTP: each has a base URL of its own, under which OpenAI's clients find a model.

    http://127.0.0.1:PORT/SECRET/v1        GET /models, POST /chat/completions
    http://127.0.0.1:PORT/SECRET           POST /inference/v1/generate

The secret names the session, so that a program that runs one episode can't reach another's. How answers are sampled is
the run's to say: a request's temperature, top_p, seed and penalties change nothing, since the learner must know the
distribution that was sampled from. Streams are sent once the answer is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from serving_bridge.routing import NoReplicaError
from serving_bridge.sessions.errors import SessionError
from serving_bridge.sessions.messages import read_messages, read_tools
from serving_bridge.sessions.session import Session
from serving_bridge.sessions.token_route import logprobs_told, read_token_request, tokens_told
from serving_bridge.sessions.tree import Answered
from serving_bridge.vllm import ReplicaError

#: what the model is called; requests may call it otherwise
MODEL = "policy"
_HOST = "127.0.0.1"
_MAX_BODY_BYTES = 16 << 20
_MAX_CHOICES = 16


class _Request(msgspec.Struct):
    """A request as far as a session heeds it; other fields are left alone."""

    messages: Any
    tools: Any = None
    tool_choice: Any = None
    response_format: Any = None
    stop: Any = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = None


class SessionEndpoint:
    """Serves open sessions on a free port of loopback, from `start` to `close`.

    Args:
      max_context: of the model, as /models says it.
    """

    def __init__(self, *, max_context: int) -> None:
        self._max_context = max_context
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        """Opens the port. Raises `OSError`."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/{secret}/v1/models", self._models)
        app.router.add_post("/{secret}/v1/chat/completions", self._complete)
        app.router.add_post("/{secret}/inference/v1/generate", self._generate)
        app.router.add_route("*", "/{path:.*}", _nothing_here)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, _HOST, 0)
        await site.start()
        assert self._runner.addresses
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Closes the port; requests in flight end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @asynccontextmanager
    async def opened(self, session: Session) -> AsyncIterator[str]:
        """The base URL of a session, which is closed to requests at the end."""
        secret = secrets.token_hex(16)
        self._sessions[secret] = session
        try:
            yield f"http://{_HOST}:{self._port}/{secret}/v1"
        finally:
            del self._sessions[secret]

    async def _models(self, request: web.Request) -> web.Response:
        if request.match_info["secret"] not in self._sessions:
            return _refused(_closed())
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "weir", "max_model_len": self._max_context}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        async def told(session: Session, body: bytes) -> web.StreamResponse:
            asked = _read(body)
            said = _completion(await self._answers(session, asked), with_logprobs=bool(asked.logprobs))
            return await _streamed(request, said, asked) if asked.stream else web.json_response(said)

        return await self._told(request, told)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        async def told(session: Session, body: bytes) -> web.StreamResponse:
            asked = read_token_request(body, max_choices=_MAX_CHOICES, vocab_size=session.limits.vocab_size)
            given = asked.sampling_params
            stops, count = given.stop_token_ids or (), given.n or 1
            work = (session.generate(asked.token_ids, given.max_tokens, stops) for _ in range(count))
            return web.json_response(tokens_told(await _all(work), asked.request_id))

        return await self._told(request, told)

    async def _told(
        self, request: web.Request, told: Callable[[Session, bytes], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """What a session answers to a request; errors as OpenAI's API words them."""
        try:
            session = self._sessions.get(request.match_info["secret"])
            if session is None:
                raise _closed()
            return await told(session, await request.read())
        except SessionError as error:
            return _refused(error)
        except web.HTTPRequestEntityTooLarge:
            return _refused(SessionError(f"a body has at most {_MAX_BODY_BYTES} bytes", status=413))
        except (ReplicaError, NoReplicaError) as error:
            return _refused(SessionError(f"no answer could be had: {error}", status=503, code="unavailable"))

    async def _answers(self, session: Session, asked: _Request) -> list[Answered]:
        messages, tools = read_messages(asked.messages), read_tools(asked.tools)
        tools = () if asked.tool_choice == "none" else tools
        most = asked.max_completion_tokens or asked.max_tokens
        return await _all(session.answer(messages, tools, most) for _ in range(asked.n or 1))


async def _all(work: Iterable[Coroutine[Any, Any, Answered]]) -> list[Answered]:
    return list(await asyncio.gather(*work))


def _read(body: bytes) -> _Request:
    try:
        asked = msgspec.json.decode(body, type=_Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SessionError(f"the body is no request for a chat completion: {error}") from None
    if asked.n is not None and not 1 <= asked.n <= _MAX_CHOICES:
        raise SessionError(f"expected 1 to {_MAX_CHOICES}", param="n")
    if any(most is not None and most < 1 for most in (asked.max_completion_tokens, asked.max_tokens)):
        raise SessionError("expected at least 1", param="max_tokens")
    if asked.tool_choice not in (None, "auto", "none"):
        raise SessionError("the model chooses by itself; expected auto or none", param="tool_choice")
    kind = (asked.response_format or {}).get("type", "text") if isinstance(asked.response_format, dict | None) else ""
    if kind != "text":
        raise SessionError("answers are not bent to a format; expected text", param="response_format")
    if asked.stop:
        raise SessionError("answers end where the model ends them; expected none", param="stop")
    return asked


def _completion(answers: list[Answered], *, with_logprobs: bool) -> dict[str, Any]:
    prompt = answers[0].context
    sampled = sum(len(answered.answer) for answered in answers)
    return {
        "id": f"chatcmpl-{answers[0].number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [_choice(index, answered, with_logprobs) for index, answered in enumerate(answers)],
        "usage": {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled},
    }


def _choice(index: int, answered: Answered, with_logprobs: bool) -> dict[str, Any]:
    message = answered.message
    told: dict[str, Any] = {"role": "assistant", "content": message.content or None, "refusal": None}
    reason = answered.answer.finish_reason
    if message.calls:
        told["tool_calls"] = [call.as_openai() for call in message.calls]
        reason = "tool_calls" if reason == "stop" else reason
    elif not message.content:
        told["content"] = ""
    logprobs = None
    if with_logprobs:
        logprobs = {"content": logprobs_told(answered.answer), "refusal": None}
    return {"index": index, "message": told, "logprobs": logprobs, "finish_reason": reason}


async def _streamed(request: web.Request, told: dict[str, Any], asked: _Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        head = {key: told[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        for choice in told["choices"]:
            delta = dict(choice["message"])
            if "tool_calls" in delta:
                delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
            begun = {"index": choice["index"], "delta": delta, "logprobs": choice["logprobs"], "finish_reason": None}
            ended = {"index": choice["index"], "delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}
            for part in (begun, ended):
                await _send(response, {**head, "choices": [part]})
        if (asked.stream_options or {}).get("include_usage"):
            await _send(response, {**head, "choices": [], "usage": told["usage"]})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
    return response


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def _nothing_here(request: web.Request) -> web.Response:
    return _refused(
        SessionError(
            "there is /v1/models, /v1/chat/completions and /inference/v1/generate", status=404, code="not_found"
        )
    )


def _closed() -> SessionError:
    return SessionError("no such session, or its episode has ended", status=404, code="session_closed")


def _refused(error: SessionError) -> web.Response:
    return web.json_response(error.payload(), status=error.status)

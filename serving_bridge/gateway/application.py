"""The gateway's routes: an ASGI application over the service."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving_bridge.gateway.bodies import (
    ClientGone,
    Receive,
    Scope,
    Send,
    headers_of,
    read_body,
    skip_body,
    time_left,
    until_gone,
)
from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.errors import GatewayError, timed_out
from serving_bridge.gateway.feedback_routes import FeedbackRoutes
from serving_bridge.gateway.observations import Exchange, tell
from serving_bridge.gateway.openai_form import Form, Tag, usage
from serving_bridge.gateway.parts import Parts
from serving_bridge.gateway.recording import with_headers
from serving_bridge.gateway.requests import Asked, read_chat, read_completion
from serving_bridge.gateway.schema import openapi
from serving_bridge.gateway.service import Answer, Answering

_log = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
#: what OpenAI's API has and this gateway has not, and why
_MISSING: Mapping[str, str] = {
    "embeddings": "the served model writes text and gives no embeddings; serve an embedding model beside it",
    "moderations": "guards look at prompts and answers by themselves; they can't be asked alone",
    "responses": "use /v1/chat/completions",
    "assistants": "use /v1/chat/completions with tools",
    "threads": "use /v1/chat/completions with the whole conversation",
    "images": "the served model writes text alone",
    "audio": "the served model reads and writes text alone",
    "videos": "the served model writes text alone",
    "realtime": "use /v1/chat/completions with stream",
    "files": "nothing is kept for requests to come",
    "uploads": "nothing is kept for requests to come",
    "batches": "send the requests one by one; those of a key go by its priority",
    "fine_tuning": "the model is trained by the run that serves it",
    "vector_stores": "nothing is kept for requests to come",
}


def application(parts: Parts, service: Answering) -> Starlette:
    """The routes. Errors of every kind have OpenAI's body."""

    def post(path: str, read: Callable[[bytes], Asked], prefix: str) -> Route:
        return Route(path, _Endpoint(parts, service, read, prefix), methods=["POST"])

    models = _Models(parts)
    routes = [
        post("/v1/chat/completions", read_chat, "chatcmpl-"),
        post("/v1/completions", read_completion, "cmpl-"),
        Route("/v1/models", models.all, methods=["GET"]),
        Route("/v1/models/{name:path}", models.one, methods=["GET"]),
        *FeedbackRoutes(parts).routes(),
        Route("/openapi.json", _schema_of(parts), methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _failed})


class _Endpoint:
    """One of the two routes that answer."""

    def __init__(self, parts: Parts, service: Answering, read: Callable[[bytes], Asked], prefix: str) -> None:
        self._parts, self._service, self._read, self._prefix = parts, service, read, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts = self._parts.counts
        reply = _Reply(send, self._prefix + secrets.token_hex(16))
        exchange = Exchange(reply.response_id, time.monotonic())
        counts.in_flight += 1
        try:
            await self._answered(scope, receive, reply, exchange)
        except ClientGone:
            reply.status = 0
        except GatewayError as error:
            await reply.refuse(error)
        finally:
            counts.in_flight -= 1
            counts.statuses[str(reply.status or "gone")] += 1
            exchange.code = reply.code or exchange.code
            status = exchange.covered_status or reply.status
            seen = tell(self._parts.observations, exchange, status, time.monotonic(), self._parts.arms)
            if seen is not None:
                counts.arms[seen.arm] += 1

    async def _answered(self, scope: Scope, receive: Receive, reply: _Reply, exchange: Exchange) -> None:
        began_s = exchange.began_s
        headers = headers_of(scope)
        timeout_s = time_left(headers, self._parts.settings.timeout_s)
        caller = await self._entered(headers, receive)
        body = await read_body(headers, receive, max_bytes=self._parts.settings.max_body_bytes)
        asked = with_headers(self._read(body), headers)
        self._parts.admission.check(caller, scope["path"], asked.model)

        async def work() -> None:
            left_s = timeout_s - (time.monotonic() - began_s)
            try:
                async with asyncio.timeout(left_s):
                    async with self._service.answered(asked, caller, exchange, left_s) as answer:
                        await self._told(asked, answer, reply, exchange)
            except TimeoutError:
                await reply.refuse(timed_out(timeout_s))
            except GatewayError as error:
                await reply.refuse(error)
            except Exception as error:  # noqa: BLE001  (a stranger's request must not end in a bare page)
                await reply.refuse(_unexpected(error, reply.response_id))

        await _while_there(work(), receive)

    async def _entered(self, headers: Mapping[str, str], receive: Receive) -> Caller:
        """Who asks; what is refused here is not read, and costs next to nothing. Raises `GatewayError`."""
        admission = self._parts.admission
        try:
            caller = admission.authenticate(headers)
            admission.check_now(caller)
        except GatewayError as error:
            error.closes = not await skip_body(headers, receive, max_bytes=self._parts.settings.max_body_bytes)
            raise
        return caller

    async def _told(self, asked: Asked, answer: Answer, reply: _Reply, exchange: Exchange) -> None:
        texts = [self._parts.tokenizer.decode(prompt) for prompt in answer.prompts] if asked.echo else []
        form = Form(asked, answer.tag, self._parts.tokenizer, texts)
        totals = self._parts.counts.totals
        is_first = True
        if asked.stream:
            await reply.begin_stream(answer.tag, form.begin(len(answer.choices)))
        reply.form = form
        async for deltas in answer.deltas:
            if is_first:
                exchange.first_s = time.monotonic()
                totals["first_token_s"] += exchange.first_s - exchange.began_s
                totals["begun"] += 1
                is_first = False
            if asked.stream:
                await reply.write(_events(form, deltas, answer))
        used = usage(answer.prompts, answer.choices, answer.before)
        if asked.stream:
            await reply.write(form.end(used), is_last=True)
        else:
            await reply.whole(answer.tag.as_sampled(answer.choices), form.whole(answer.choices, used))


def _events(form: Form, deltas: Sequence[Any], answer: Answer) -> bytes:
    is_over = all(choice.finish is not None for choice in answer.choices)
    ends = [number for number, delta in enumerate(deltas) if delta.finish is not None] if is_over else []
    last = ends[-1] if ends else -1
    return b"".join(form.event(delta, answer.choices if number == last else ()) for number, delta in enumerate(deltas))


async def _while_there(work: Any, receive: Receive) -> None:
    """Does the work, and breaks it off when the client leaves. Raises `ClientGone` then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        for task in (leaving, working):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


class _Reply:
    """What is sent to one client.

    Attributes:
      status: of the answer; 0 before it began.
      code: of the error that it ended with; "" for none.
      form: of a stream that began.
    """

    def __init__(self, send: Send, response_id: str) -> None:
        self._send, self.response_id = send, response_id
        self.status, self.code = 0, ""
        self.form: Form | None = None
        self._is_over = False

    async def begin_stream(self, tag: Tag, events: bytes) -> None:
        await self._start(200, [*_STREAM, *_tagged(tag)])
        if events:
            await self.write(events)

    async def write(self, events: bytes, *, is_last: bool = False) -> None:
        self._is_over = is_last
        await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})

    async def whole(self, tag: Tag, body: bytes) -> None:
        await self._start(200, [_JSON, _length(body), *_tagged(tag)])
        await self.write(body, is_last=True)

    async def refuse(self, error: GatewayError) -> None:
        """An error as the answer, or as the last event of a stream."""
        if self._is_over:
            return
        self.code = error.code or str(error.status)
        if self.status and self.form is not None:
            await self.write(self.form.failed(error), is_last=True)
            return
        body = error.payload()
        own = (b"x-request-id", self.response_id.encode())
        await self._start(error.status, [_JSON, _length(body), own, *error.headers()])
        await self.write(body, is_last=True)

    async def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


def _tagged(tag: Tag) -> Sequence[tuple[bytes, bytes]]:
    told = [(b"x-request-id", tag.response_id.encode()), (b"x-weir-arm", tag.arm.encode())]
    if tag.session:
        told.append((b"x-weir-session", tag.session.encode()))
    if tag.wanted_arm != tag.arm:
        told.append((b"x-weir-wanted-arm", tag.wanted_arm.encode()))
    if tag.version is not None:
        told.append((b"x-weir-policy-version", str(tag.version).encode()))
    if tag.fallback is not None:
        told.append((b"x-weir-fallback", f"{tag.fallback['case']}/{tag.fallback['policy']}".encode()))
    return told


class _Models:
    """What is served."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._created = int(time.time())

    async def all(self, request: Request) -> Response:
        return _checked(request, self._parts, lambda: {"object": "list", "data": [self._described()]})

    async def one(self, request: Request) -> Response:
        def found() -> Any:
            if (name := request.path_params["name"]) != self._parts.settings.model:
                raise GatewayError(404, f"The model {name[:100]!r} does not exist", code="model_not_found")
            return self._described()

        return _checked(request, self._parts, found)

    def _described(self) -> dict[str, Any]:
        return {
            "id": self._parts.settings.model,
            "object": "model",
            "created": self._created,
            "owned_by": "weir",
            "max_model_len": self._parts.prompts.max_context,
        }


def _checked(request: Request, parts: Parts, make: Callable[[], Any]) -> Response:
    try:
        parts.admission.authenticate(headers_of(request.scope))
        return _json(200, msgspec.json.encode(make()))
    except GatewayError as error:
        return _refused(error)


def _schema_of(parts: Parts) -> Callable[[Request], Any]:
    document = msgspec.json.encode(openapi(parts.settings.model, has_keys=parts.settings.require_keys))

    async def schema(request: Request) -> Response:
        return _json(200, document)

    return schema


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    path = request.scope["path"]
    if status == 405:
        refusal = GatewayError(405, f"{request.method} is not a method of this route", code="method_not_allowed")
    elif advice := _MISSING.get(path.removeprefix("/v1/").partition("/")[0]):
        refusal = GatewayError(404, f"this route is not served: {advice}", code="unsupported_endpoint")
    else:
        refusal = GatewayError(404, "Unknown request URL", code="unknown_url")
    response = _refused(refusal)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return _refused(_unexpected(error, f"req-{secrets.token_hex(16)}"))


def _unexpected(error: Exception, response_id: str) -> GatewayError:
    """A fault of ours, told in the log by where it happened: its own words may hold a client's."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else "?"
    _log.error("%s: %s at %s", response_id, type(error).__name__, place)
    return GatewayError(500, f"the gateway failed; it is told in its log as {response_id}", code="internal_error")


def _refused(error: GatewayError) -> Response:
    response = _json(error.status, error.payload())
    for name, value in error.headers():
        response.headers[name.decode()] = value.decode()
    return response


def _json(status: int, body: bytes) -> Response:
    return Response(body, status, media_type="application/json")

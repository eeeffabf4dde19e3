"""One request to one replica: token ids in, a stream of sampled tokens out, by vLLM's /inference/v1/generate.

The request is built anew from checked values. Leaving the stream before its end closes the connection, which is how
vLLM learns that nobody waits for the answer any more.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from learner_jax.contracts import MAX_RECORD_TEXT, quoted
from serving_bridge.gateway.errors import GatewayError, invalid
from serving_bridge.gateway.replicas import Target
from serving_bridge.gateway.requests import Sampling
from serving_bridge.vllm import QUEUE_FULL, version_named

_GENERATE = "/inference/v1/generate"
_CONNECT_S = 2.0
#: a connection that took so much longer than that to be given up says that this process stood still
_LATE_S = 0.1
_MAX_LATE = 5
_MAX_EVENT_BYTES = 8 << 20
_MAX_ERROR_BYTES = 64 << 10
_BAD_REQUEST = 400
#: what vLLM says of one request that ended in `FINISHED_ERROR`; a dead engine says something else
_REQUEST_FAILED = "Internal server error"
#: statuses of a server that another start's token, or another address, was meant for
_OTHER_SERVER = (401, 421)


class ReplicaLost(Exception):
    """A replica gave no answer, or none to its end; another one may."""


class ReplicaFull(ReplicaLost):
    """Too many requests wait at a replica that is well."""


@dataclass(frozen=True)
class Wanted:
    """What a replica is asked for.

    Attributes:
      request_id: made by the gateway.
      ends: token ids that end an answer.
      priority: lower goes first where the replica is full.
      cache_salt: of the tenant, so that nobody learns from the prefix cache what others asked; "" for none.
      keeps: whether the sampled tokens' log-probs are needed, also where the client does not ask for any.
    """

    request_id: str
    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    ends: Sequence[int]
    priority: int = 0
    cache_salt: str = ""
    keeps: bool = False

    def body(self) -> bytes:
        """The request as vLLM takes it; what has its default is left out."""
        sampling = self.sampling
        parameters: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": list(self.ends),
            "ignore_eos": True,
            "detokenize": bool(sampling.stop),
        }
        optional = {
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
            "presence_penalty": sampling.presence_penalty or None,
            "frequency_penalty": sampling.frequency_penalty or None,
            "logit_bias": sampling.logit_bias,
            "logprobs": 0 if self.keeps and sampling.logprobs is None else sampling.logprobs,
            "structured_outputs": _structure(sampling),
        }
        parameters |= {name: value for name, value in optional.items() if value is not None}
        body = {
            "request_id": self.request_id,
            "token_ids": self.prompt,
            "sampling_params": parameters,
            "stream": True,
            "priority": self.priority,
        }
        if self.cache_salt:
            body["cache_salt"] = self.cache_salt
        return msgspec.json.encode(body)


def _structure(sampling: Sampling) -> dict[str, Any] | None:
    if sampling.schema is None:
        return None
    return {"json": sampling.schema} if sampling.schema else {"json_object": True}


class TokenLogprob(msgspec.Struct):
    """Log-prob of one token, in nats, after temperature."""

    token_id: int
    logprob: float


class PositionLogprobs(TokenLogprob):
    """The sampled token's log-prob, with those of the likeliest ones."""

    top_logprobs: list[TokenLogprob] = []


class _Logprobs(msgspec.Struct):
    content: list[PositionLogprobs] | None = None


class _Span(msgspec.Struct):
    version: str
    start: int
    end: int


class _Choice(msgspec.Struct):
    index: int
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    weight_versions: list[_Span] | None = None


class _Error(msgspec.Struct):
    message: Any = None
    type: Any = None
    code: Any = None


class _Refusal(msgspec.Struct):
    error: _Error


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens from `start` to before `end` that one policy version sampled; None where its weights had no name."""

    version: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens of one choice.

    Attributes:
      finish: "stop" or "length" with the last piece, else None.
      spans: with the last piece.
    """

    index: int
    tokens: Sequence[int]
    finish: str | None = None
    logprobs: Sequence[PositionLogprobs] = ()
    spans: Sequence[Span] = ()


def client_session() -> aiohttp.ClientSession:
    """What all requests of a process go through: without cookies, proxies, or a bound on connections of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
    )


@asynccontextmanager
async def opened(
    session: aiohttp.ClientSession, target: Target, wanted: Wanted, *, stall_timeout_s: float
) -> AsyncIterator[AsyncIterator[list[Piece]]]:
    """The answer of a replica, whose head is there; lists hold what came together.

    Args:
      stall_timeout_s: longest silence.

    Raises:
      ReplicaLost: no answer, or none to its end; also while the pieces are read. `ReplicaFull` where it takes none now.
      GatewayError: the replica refuses the request itself; also while the pieces are read.
    """
    response = await _asked(session, target, wanted, stall_timeout_s)
    try:
        if response.status != 200:
            raise await _refusal(response, target)
        yield _pieces(response, target, wanted.sampling)
    finally:
        response.close()


async def _asked(
    session: aiohttp.ClientSession, target: Target, wanted: Wanted, stall_timeout_s: float
) -> aiohttp.ClientResponse:
    """The head of a replica's answer.

    A process that stood still finds its own timers over before it looks at its sockets. It then tries again, since that
    says nothing of the replica.
    """
    headers = {"Authorization": f"Bearer {target.token}", "Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=stall_timeout_s)
    url, body, late = target.url + _GENERATE, wanted.body(), 0
    while True:
        began_s = time.monotonic()
        try:
            return await session.post(url, data=body, headers=headers, timeout=timeout, allow_redirects=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            is_connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            late += is_connecting and time.monotonic() - began_s > _CONNECT_S + _LATE_S
            if not is_connecting or not 0 < late <= _MAX_LATE:
                raise ReplicaLost(f"{target.name}: {error or type(error).__name__}") from error


async def _refusal(response: aiohttp.ClientResponse, target: Target) -> Exception:
    try:
        payload = await response.content.read(_MAX_ERROR_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError):
        payload = b""
    error = _error(payload)
    if (response.status, error.type) == QUEUE_FULL:
        return ReplicaFull(f"{target.name} has too many requests that wait")
    if response.status >= 500 or response.status in _OTHER_SERVER:
        return ReplicaLost(f"{target.name} answered {response.status}")
    if response.status == _BAD_REQUEST:
        return _not_taken(error.message)
    return GatewayError(500, f"the model's server answered {response.status}", code="internal_error")


def _error(payload: bytes) -> _Error:
    """What an answer says of its error; nothing where it can't be read."""
    try:
        return msgspec.json.decode(payload, type=_Refusal).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Error()


def _not_taken(message: Any) -> GatewayError:
    said = "it does not say why" if message is None else quoted(str(message), MAX_RECORD_TEXT)
    return invalid(f"the model's server does not take the request: {said}")


async def _pieces(response: aiohttp.ClientResponse, target: Target, sampling: Sampling) -> AsyncIterator[list[Piece]]:
    decode = msgspec.json.Decoder(_Event).decode
    rest, open_, may_be_schema = b"", sampling.n, sampling.schema is not None
    try:
        async for block in response.content.iter_any():
            *events, rest = (rest + block).split(b"\n\n")
            if len(rest) > _MAX_EVENT_BYTES:
                raise ReplicaLost(f"{target.name} sent an event of more than {_MAX_EVENT_BYTES} bytes")
            found: list[Piece] = []
            for event in events:
                if event == b"data: [DONE]" or not event:
                    continue
                for choice in _choices(decode(event.removeprefix(b"data: ")), target, may_be_schema):
                    may_be_schema = False
                    found.append(choice)
                    open_ -= choice.finish is not None
            if found:
                yield found
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ReplicaLost(f"{target.name}: {error or type(error).__name__}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReplicaLost(f"{target.name} sent what can't be read: {error}") from error
    if open_:
        raise ReplicaLost(f"{target.name} ended a stream before its answers")


def _choices(event: _Event, target: Target, may_be_schema: bool) -> Sequence[Piece]:
    """The event's pieces.

    Args:
      may_be_schema: whether a failure of the request alone is one of its schema, which vLLM compiles before the first
        token.
    """
    if event.error is not None:
        if event.error.code == _BAD_REQUEST:  # what vLLM finds when the stream has begun
            raise _not_taken(event.error.message)
        if (event.error.code, event.error.type) == QUEUE_FULL:
            raise ReplicaFull(f"{target.name} has too many requests that wait")
        if may_be_schema and event.error.message == _REQUEST_FAILED:
            raise invalid("the model's server can't follow the schema", "response_format")
        raise ReplicaLost(f"{target.name} ended an answer with an error")
    return [_piece(choice, target) for choice in event.choices]


def _piece(choice: _Choice, target: Target) -> Piece:
    if choice.finish_reason not in (None, "stop", "length"):
        raise ReplicaLost(f"{target.name} ended an answer with {choice.finish_reason!r}")
    return Piece(
        choice.index,
        choice.token_ids or (),
        choice.finish_reason,
        (choice.logprobs.content or ()) if choice.logprobs is not None else (),
        [Span(version_named(span.version), span.start, span.end) for span in choice.weight_versions or ()],
    )

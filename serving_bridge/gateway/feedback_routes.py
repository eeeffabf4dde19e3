"""The routes of feedback: what people say of answers, and the session calls of agents.

    POST /v1/feedback         one piece, or {"feedback": [...]}
    POST /rl/start_session    {"session": NAME}: a name to send as X-Weir-Session
    POST /rl/set_reward       {"session_id": NAME, "reward": 1.0}, or with response_id for one answer
    POST /rl/end_session      {"session_id": NAME}

All pieces of a request are stored, durably, or none. The same again changes nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from learner_jax.contracts import ContractError
from learner_jax.runtime import WeirError
from serving_bridge.feedback import Feedback, read_feedback
from serving_bridge.gateway.bodies import ClientGone, headers_of, read_body
from serving_bridge.gateway.callers import Caller
from serving_bridge.gateway.errors import GatewayError, invalid, unavailable
from serving_bridge.gateway.parts import Parts
from serving_bridge.settings import FeedbackSettings

#: of one request
MAX_PIECES = 1000
#: Requests whose feedback is being stored; further ones are told to come back.
_MAX_WAITING = 32

Work = Callable[[Caller, bytes], Any]


class FeedbackRoutes:
    """Takes feedback of one gateway process; refuses it where nothing is recorded."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._store = parts, parts.feedback
        self._waiting = 0

    def routes(self) -> list[Route]:
        """What the application serves."""
        return [
            Route("/v1/feedback", self._answers(self._feedback), methods=["POST"]),
            Route("/rl/start_session", self._answers(self._start), methods=["POST"]),
            Route("/rl/set_reward", self._answers(self._reward), methods=["POST"]),
            Route("/rl/end_session", self._answers(self._end), methods=["POST"]),
        ]

    def _answers(self, work: Work) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                headers = headers_of(request.scope)
                caller = self._parts.admission.authenticate(headers)
                self._may(caller)
                limit = self._parts.settings.max_body_bytes
                body = await read_body(headers, request.receive, max_bytes=limit)
                self._parts.admission.check(caller, request.scope["path"], self._parts.settings.model)
                told = await work(caller, body)
            except GatewayError as error:
                return _response(error.status, error.payload(), error)
            except ClientGone:
                return Response(status_code=400)
            return _response(200, msgspec.json.encode(told))

        return answer

    def _may(self, caller: Caller) -> None:
        if self._store is None:
            raise GatewayError(
                404, "feedback is not taken here: nothing is recorded (sessions.record)", code="unsupported_endpoint"
            )
        if not caller.consents or caller.retention_days <= 0:
            raise GatewayError(
                403, "nothing of this tenant is recorded, so that feedback has nothing to join", code="consent_required"
            )

    async def _feedback(self, caller: Caller, body: bytes) -> dict[str, Any]:
        pieces = _pieces(body)
        assert self._store is not None
        is_batch = len(pieces) != 1 or pieces[0] is not body
        found = []
        for number, piece in enumerate(pieces):
            where = f"feedback[{number}]: " if is_batch else ""
            try:
                found.append(_read(bytes(piece), self._store.settings))
            except ContractError as error:
                raise invalid(f"{where}{error}", "feedback") from None
        outcomes = await self._stored(caller, found)
        return {"outcomes": outcomes} if is_batch else {"outcome": outcomes[0], "id": found[0].feedback_id}

    async def _stored(self, caller: Caller, found: Sequence[Feedback]) -> list[str]:
        assert self._store is not None
        outcomes = await self._asked(self._store.add, caller.tenant, found)
        for outcome in outcomes:
            self._parts.counts.totals[f"feedback_{outcome}"] += 1
        return list(outcomes)

    async def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the store says, asked in a thread. Raises `GatewayError` of 503 where it can't be asked now."""
        if self._waiting >= _MAX_WAITING:
            raise unavailable("too many requests wait for the database")
        self._waiting += 1
        try:
            return await asyncio.to_thread(call, *arguments)
        except WeirError as error:
            raise unavailable("the feedback could not be stored now; send the same again") from error
        finally:
            self._waiting -= 1

    async def _start(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _decoded(body, StartSession)
        name = asked.session or f"agent-{secrets.token_hex(12)}"
        _check_name("session", name)
        assert self._store is not None
        if not await self._asked(self._store.start, caller.tenant, asked.user, name):
            raise GatewayError(409, "a session of this name has begun already", code="session_exists", param="session")
        return {"session_id": name, "headers": {"X-Weir-Session": name, "X-Weir-Consent": "yes"}}

    async def _reward(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _decoded(body, SetReward)
        fields: dict[str, Any] = {"kind": "outcome", "value": asked.reward, "id": asked.id, "user": asked.user}
        if asked.response_id:
            fields |= {"response_id": asked.response_id}
        else:
            _check_name("session_id", asked.session_id)
            fields |= {"session": asked.session_id}
        return await self._feedback(caller, msgspec.json.encode(fields))

    async def _end(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _decoded(body, EndSession)
        _check_name("session_id", asked.session_id)
        assert self._store is not None
        if not await self._asked(self._store.end, caller.tenant, asked.user, asked.session_id):
            raise GatewayError(
                404, "no session of this name began by /rl/start_session", code="session_unknown", param="session_id"
            )
        return {"session_id": asked.session_id, "ended": True}


class StartSession(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /rl/start_session; the gateway makes a name where there is none."""

    session: str = ""
    user: str = ""


class SetReward(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /rl/set_reward: of a session, or with `response_id` of one answer."""

    reward: float
    session_id: str = ""
    response_id: str = ""
    id: str = ""
    user: str = ""


class EndSession(msgspec.Struct, forbid_unknown_fields=True):
    """Body of /rl/end_session."""

    session_id: str
    user: str = ""


def _read(piece: bytes, settings: FeedbackSettings) -> Feedback:
    return read_feedback(piece, max_text_chars=settings.max_text_chars, max_outcome=settings.max_outcome)


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body: {error}", code="invalid_json") from None


def _pieces(body: bytes) -> Sequence[bytes | msgspec.Raw]:
    """The pieces of a body: itself, or those of its list."""
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if set(found) != {"feedback"}:
            return [body]
        pieces = msgspec.json.decode(found["feedback"], type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise invalid('expected a JSON object, or {"feedback": [...]}', code="invalid_json") from None
    if not 0 < len(pieces) <= MAX_PIECES:
        raise invalid(f"feedback has {len(pieces)} pieces, expected 1 to {MAX_PIECES}", "feedback")
    return pieces


def _check_name(param: str, name: str) -> None:
    if not 0 < len(name) <= 200 or not (name.isascii() and name.isprintable()):
        raise invalid("expected a name of 1 to 200 printable characters of ASCII", param)


def _response(status: int, body: bytes, error: GatewayError | None = None) -> Response:
    response = Response(body, status, media_type="application/json")
    for name, value in error.headers() if error is not None else ():
        response.headers[name.decode()] = value.decode()
    return response

"""Requests as they are sent, and which error each status is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from serving_bridge.vllm.answers import Failed, Full, Rejected, ReplicaError, Superseded, Unreachable
from serving_bridge.vllm.transport import GENERATE, Transport
from tests.support.rollout_world import virtually


class Session:
    """Keeps what was sent, and answers as told."""

    def __init__(self, status: int = 200, payload: bytes = b"{}") -> None:
        self.status, self.payload = status, payload
        self.sent: dict[str, Any] = {}

    @asynccontextmanager
    async def request(self, method: str, url: str, **fields: Any) -> AsyncIterator[Any]:
        self.sent = {"method": method, "url": url} | fields

        async def read() -> bytes:
            return self.payload

        yield SimpleNamespace(status=self.status, read=read)


def ask(session: Session, route: str = "/resume", *, token: str = "t", **options: Any) -> bytes:
    return virtually(Transport("http://a", session, timeout_s=60, token=token).request("POST", route, **options))


def test_a_request_is_sent_with_its_token_body_and_bound() -> None:
    session = Session(payload=b"yes")
    assert ask(session, GENERATE, body={"a": 1}, timeout_s=5.0) == b"yes"
    assert (session.sent["url"], session.sent["data"]) == (f"http://a{GENERATE}", b'{"a":1}')
    assert session.sent["headers"] == {"Authorization": "Bearer t", "Content-Type": "application/json"}
    assert (session.sent["timeout"].total, session.sent["allow_redirects"]) == (5.0, False)
    ask(session, params={"mode": "keep"}, token="")
    assert (session.sent["data"], session.sent["params"]) == (None, {"mode": "keep"})
    assert session.sent["headers"] == {"Connection": "close"}
    assert session.sent["timeout"].total == 60


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (199, Rejected),
        (300, Rejected),
        (401, Unreachable),
        (404, Rejected),
        (409, Superseded),
        (421, Unreachable),
        (499, Rejected),
        (500, Failed),
        (503, Failed),
    ],
)
def test_every_status_is_an_error_of_its_kind(status: int, error: type[ReplicaError]) -> None:
    with pytest.raises(error, match=f"POST http://a/resume: {status} why") as caught:
        ask(Session(status, b'{"error": {"message": "why"}}'))
    assert type(caught.value) is error


def test_a_full_queue_is_told_from_other_failures() -> None:
    """By what vLLM's `QueueOverflowError` and `MaxQueuedTokensError` become."""
    full = b'{"error": {"message": "busy", "type": "Service Unavailable", "param": null, "code": 503}}'
    with pytest.raises(Full, match="503 busy"):
        ask(Session(503, full))
    for status, payload in [
        (500, full),
        (503, full.replace(b"Service Unav", b"ServiceUnav")),
        (503, b"[1]"),
        (503, b""),
    ]:
        with pytest.raises(Failed) as caught:
            ask(Session(status, payload))
        assert type(caught.value) is Failed


@pytest.mark.parametrize(("payload", "said"), [(b'{"a": 1}', "{'a': 1}"), (b"<html>", "<html>"), (b"[1]", r"\[1\]")])
def test_an_error_says_what_the_server_said(payload: bytes, said: str) -> None:
    with pytest.raises(Failed, match=f"500 {said}$"):
        ask(Session(500, payload))


@pytest.mark.parametrize("status", [200, 204, 299])
def test_an_answer_of_2xx_is_one(status: int) -> None:
    assert ask(Session(status, b"x")) == b"x"

"""The gate inside vLLM's server: what it refuses never reaches the server, and without sound tokens nothing starts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from serving_bridge.access.gate import BASE_URL, INFERENCE_TOKEN, Gate, GateError
from serving_bridge.access.probes import CONTROL_TOKEN
from serving_bridge.vllm_plugin.middleware import GateMiddleware

URL = "http://127.0.0.1:8000"


CONTROL, INFERENCE = "c" * 64, "i" * 64


JSON = "application/json"


GENERATE = {"token_ids": [5], "sampling_params": {"max_tokens": 4}}


def through_middleware(
    app: Callable[..., Any], scope: dict[str, Any], messages: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    incoming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(incoming, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(GateMiddleware(app)(scope, receive, send))  # type: ignore[arg-type]
    return sent


@pytest.fixture
def in_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {CONTROL_TOKEN: CONTROL, INFERENCE_TOKEN: INFERENCE, BASE_URL: URL}.items():
        monkeypatch.setenv(name, value)


def scope_of(path: str, body: bytes, **changes: Any) -> dict[str, Any]:
    headers = {"host": "127.0.0.1:8000", "authorization": f"Bearer {CONTROL}", "content-length": str(len(body))}
    headers |= {"content-type": JSON, "x-request-id": "weir-probe-dead-1-0"}
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    } | changes


@pytest.mark.usefixtures("in_server")
def test_the_server_sees_the_body_once_and_no_request_id_of_the_header():
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["headers"] = dict(scope["headers"])
        seen["messages"] = [await receive(), await receive()]

    body = json.dumps(GENERATE).encode()
    pieces = [
        {"type": "http.request", "body": body[:7], "more_body": True},
        {"type": "http.request", "body": body[7:], "more_body": False},
    ]
    assert through_middleware(app, scope_of("/inference/v1/generate", body), pieces) == []
    assert seen["messages"] == [
        {"type": "http.request", "body": body, "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert b"x-request-id" not in seen["headers"]
    assert b"authorization" in seen["headers"]


@pytest.mark.usefixtures("in_server")
@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (scope_of("/collective_rpc", b"{}", raw_path=b"/x"), 404),
        (scope_of("/collective_rpc", b"", method="GET", raw_path=b"/metrics"), 404),
        (scope_of("/collective_rpc", b"{}", root_path="/api"), 404),
        (scope_of("/collective_rpc", b"{}", raw_path=None), 404),
        (scope_of("/collective_rpc", b"{}", headers=[(b"host", b"127.0.0.1:8000")]), 401),
        (scope_of("/collective_rpc", b"x" * (1 << 17)), 413),
        ({"type": "websocket", "path": "/collective_rpc"}, 1008),
    ],
)
def test_what_is_refused_never_reaches_the_server(scope: dict[str, Any], status: int):
    async def app(*_: Any) -> None:
        raise AssertionError("it got through")

    sent = through_middleware(app, scope, [{"type": "http.request", "body": b"{}", "more_body": False}])
    assert (sent[0].get("status") or sent[0].get("code")) == status


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {CONTROL_TOKEN: CONTROL, INFERENCE_TOKEN: INFERENCE},
        {CONTROL_TOKEN: "", INFERENCE_TOKEN: INFERENCE, BASE_URL: URL},
        {CONTROL_TOKEN: "short", INFERENCE_TOKEN: INFERENCE, BASE_URL: URL},
        {CONTROL_TOKEN: CONTROL, INFERENCE_TOKEN: CONTROL, BASE_URL: URL},
        {CONTROL_TOKEN: CONTROL, INFERENCE_TOKEN: INFERENCE, BASE_URL: "127.0.0.1"},
    ],
)
def test_a_server_without_sound_tokens_does_not_start(environment: dict[str, str]):
    with pytest.raises(GateError):
        Gate.of_environment(environment)

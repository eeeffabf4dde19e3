"""What stands before vLLM's server: nothing reaches it that the gate does not let in, and what does arrives whole."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from serving_bridge.access import Generate
from serving_bridge.vllm_plugin.middleware import GateMiddleware

CONTROL, INFERENCE = "c" * 64, "i" * 64
BODY = b'{"token_ids": [5], "sampling_params": {"max_tokens": 4}}'
GENERATE = "/inference/v1/generate"
Message = dict[str, Any]


class App:
    """The server behind: keeps what reaches it, and answers with a status, or nothing if that is 0."""

    def __init__(self) -> None:
        self.status = 0
        self.scopes: list[Message] = []
        self.received: list[Message] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            self.received += [await receive(), await receive()]
            if self.status:
                await send({"type": "http.response.start", "status": self.status, "headers": []})
        else:
            await send({"type": "done"})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def gate(app: App, monkeypatch: pytest.MonkeyPatch) -> GateMiddleware:
    for name, value in (("CONTROL_TOKEN", CONTROL), ("INFERENCE_TOKEN", INFERENCE), ("BASE_URL", "http://h:1")):
        monkeypatch.setenv(f"WEIR_{name}", value)
    return GateMiddleware(app)


def http(path: str = GENERATE, *, token: str = INFERENCE, length: int = len(BODY), **fields: Any) -> Message:
    headers = [
        (b"host", b"h:1"), (b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json"),
        (b"content-length", str(length).encode()), (b"x-request-id", b"weir-probe-x"),
    ]  # fmt: skip
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
    return scope | {"query_string": b"", "root_path": ""} | fields


def run(gate: GateMiddleware, scope: Message, *messages: Message) -> list[Message]:
    """What is sent back; `messages` come one after the other, and then the client goes."""
    waiting, events = list(messages), []

    async def receive() -> Message:
        events.append("received")
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        events.append(message)

    asyncio.run(gate(scope, receive, send))
    sent = [event for event in events if event != "received"]
    assert not sent or events[: len(events) - len(sent)] == ["received"] * (len(events) - len(sent)), events
    return sent


def of_round(gate: GateMiddleware, scope: Message, token: int | None = None) -> Message:
    """The same with the fencing token of a round; of a new one by default."""
    token = begun(gate) if token is None else token
    return scope | {"headers": [*scope["headers"], (b"x-weir-fencing-token", str(token).encode())]}


def begun(gate: GateMiddleware) -> int:
    start, body = run(gate, http("/weir_round", token=CONTROL, length=0))
    assert start["status"] == 200
    return int(msgspec.json.decode(body["body"])["fencing_token"])


def request(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def refusal(sent: Sequence[Message]) -> tuple[int, str]:
    start, body = sent
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    headers = dict(start["headers"])
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert headers[b"connection"] == b"close"
    assert (headers.get(b"www-authenticate") == b"Bearer") is (start["status"] == 401)
    return start["status"], msgspec.json.decode(body["body"])["error"]["message"]


def test_a_request_reaches_the_server_whole_and_without_the_id_of_a_header(gate: GateMiddleware, app: App) -> None:
    assert run(gate, http(), request(BODY[:9], more=True), request(BODY[9:])) == []
    assert app.received == [request(BODY), {"type": "http.disconnect"}]
    (scope,) = app.scopes
    assert [name for name, _ in scope["headers"]] == [b"host", b"authorization", b"content-type", b"content-length"]


def test_a_route_without_a_body_is_not_read_before_the_server_does(gate: GateMiddleware, app: App) -> None:
    assert run(gate, of_round(gate, http("/resume", token=CONTROL, length=0))) == []
    assert app.received == [request(b""), {"type": "http.disconnect"}]


@pytest.mark.parametrize("is_busy", [False, True])
def test_metrics_have_the_memory_of_users_unless_the_engine_is_too_busy_to_say(
    gate: GateMiddleware, app: App, monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    from serving_bridge.vllm_plugin import USERS_KV_USAGE, users_memory

    async def ask(name: str) -> float:
        assert name == "users_kv_usage"
        await asyncio.sleep(is_busy)
        return 0.25

    monkeypatch.setattr(users_memory, "_PATIENCE_S", 0.05)
    users_memory._gauge.set(0.5)
    engine = SimpleNamespace(engine_core=SimpleNamespace(call_utility_async=ask))
    scope = http("/metrics", length=0, method="GET", app=SimpleNamespace(state=SimpleNamespace(engine_client=engine)))
    assert run(gate, scope) == []
    assert app.scopes == [scope]
    assert REGISTRY.get_sample_value(USERS_KV_USAGE) == (0.5 if is_busy else 0.25)


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (http(token="x" * 64), 401),
        (http("/resume", length=0), 403),
        (http("/other"), 404),
        (http(path="/resume"), 403),
        (http() | {"path": "/resume"}, 404),
        (http() | {"root_path": "/inference"}, 404),
        (http() | {"raw_path": b""}, 404),
        (http() | {"query_string": b"x=1"}, 403),
    ],
)
def test_what_the_gate_refuses_does_not_reach_the_server(
    gate: GateMiddleware, app: App, scope: Message, status: int
) -> None:
    assert refusal(run(gate, scope, request(BODY)))[0] == status
    assert app.scopes == []


def test_a_body_that_is_none_of_ours_does_not_reach_the_server(gate: GateMiddleware, app: App) -> None:
    assert refusal(run(gate, http(), request(b"[]")))[0] == 400
    assert app.scopes == []


def test_a_body_is_bounded_whatever_its_head_said(gate: GateMiddleware, app: App) -> None:
    most = 64 << 10
    scope = of_round(gate, http("/abort_requests", token=CONTROL, length=2))
    assert run(gate, scope, request(b"{}" + b" " * (most - 2))) == []
    assert refusal(run(gate, scope, request(b"{}" + b" " * (most - 3), more=True), request(b"  "))) == (
        413,
        "expected a body of at most 65536 bytes",
    )
    assert len(app.scopes) == 1


def test_a_client_that_goes_amid_its_body_costs_the_server_nothing(gate: GateMiddleware, app: App) -> None:
    assert run(gate, http(), request(BODY[:9], more=True)) == []
    assert app.scopes == []


def test_web_sockets_are_closed_after_they_were_opened_and_the_life_of_the_server_is_its_own(
    gate: GateMiddleware, app: App
) -> None:
    assert run(gate, {"type": "websocket"}, {"type": "websocket.connect"}) == [
        {"type": "websocket.close", "code": 1008, "reason": "no such route"}
    ]
    assert run(gate, {"type": "other"}) == []
    assert app.scopes == []
    assert run(gate, {"type": "lifespan"}) == [{"type": "done"}]


def packed_request(**fields: Any) -> bytes:
    return msgspec.json.encode({"token_ids": [5], "sampling_params": {"max_tokens": 4}, "packed": True} | fields)


def sampled(
    gate: GateMiddleware, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes], *messages: Message
) -> tuple[list[Message], list[tuple[Any, bytes]]]:
    """What is sent for a request of packed answers, and what the engine was asked."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, while it is imported
        from serving_bridge.vllm_plugin import sampling
    asked = []

    async def sample(engine: Any, request: Generate) -> tuple[int, bytes]:
        asked.append((engine, bytes(request.token_ids)))
        await asyncio.sleep(0.05 if messages else 0)
        return answer

    monkeypatch.setattr(sampling, "sample", sample)
    body = packed_request()
    scope = http(length=len(body), app=SimpleNamespace(state=SimpleNamespace(engine_client="engine")))
    given = [request(body[:9], more=True), request(body[9:]), *messages]

    async def receive() -> Message:
        if not given:
            await asyncio.Event().wait()
        return given.pop(0)

    sent: list[Message] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(gate(scope, receive, send), 10))
    return sent, asked


@pytest.mark.parametrize(
    ("status", "kind"), [(200, b"application/msgpack"), (400, b"application/json"), (500, b"application/json")]
)
def test_packed_answers_come_from_the_engine_and_not_from_the_server(
    gate: GateMiddleware, app: App, monkeypatch: pytest.MonkeyPatch, status: int, kind: bytes
) -> None:
    (start, body), asked = sampled(gate, monkeypatch, (status, b"packed"))
    assert (start["status"], body["body"]) == (status, b"packed")
    assert dict(start["headers"]) == {b"content-type": kind, b"content-length": b"6"}
    assert asked == [("engine", b"[5]")]
    assert app.scopes == []


def test_a_client_that_went_away_is_sent_nothing(gate: GateMiddleware, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, asked = sampled(gate, monkeypatch, (200, b"packed"), {"type": "http.disconnect"})
    assert (sent, len(asked)) == ([], 1)


def test_packed_answers_are_not_streamed(gate: GateMiddleware, app: App) -> None:
    body = packed_request(stream=True)
    assert refusal(run(gate, http(length=len(body)), request(body))) == (400, "packed answers are sent whole")
    assert app.scopes == []


STAGE = msgspec.json.encode(
    {
        "method": "weir_stage",
        "kwargs": {"version": 1, "content_sha256": "0" * 64, "round_id": "r", "lease_s": 60.0},
    }
)


@pytest.mark.parametrize(("status", "follows"), [(200, True), (500, False)])
def test_a_round_is_obeyed_until_the_server_gave_its_lease_to_a_later_one(
    gate: GateMiddleware, app: App, status: int, follows: bool
) -> None:
    first, second = begun(gate), begun(gate)
    app.status = 200
    stage = http("/collective_rpc", token=CONTROL, length=len(STAGE))
    run(gate, of_round(gate, stage, first), request(STAGE))
    resume = of_round(gate, http("/resume", token=CONTROL, length=0), first)
    assert run(gate, resume)[0]["status"] == 200
    app.status = status
    run(gate, of_round(gate, stage, second), request(STAGE))
    app.status = 200
    if follows:
        assert refusal(run(gate, resume)) == (409, "round 1 was followed by round 2: its requests come too late")
    else:
        assert run(gate, resume)[0]["status"] == 200


def test_nothing_changes_the_server_without_a_round(gate: GateMiddleware, app: App) -> None:
    assert refusal(run(gate, http("/resume", token=CONTROL, length=0)))[0] == 400
    assert refusal(run(gate, of_round(gate, http("/resume", token=CONTROL, length=0), 7)))[0] == 400
    assert app.scopes == []

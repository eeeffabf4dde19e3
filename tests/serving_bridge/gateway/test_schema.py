"""The published schema: answers of every kind follow it, bad requests too, and a fuzzer of schemas finds nothing."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from serving_bridge.gateway import openapi
from serving_bridge.gateway.application import application
from serving_bridge.gateway.requests import read_chat, read_completion
from serving_bridge.text import Tokenizer
from tests.support.gateway_requests import refusal
from tests.support.gateway_world import Script, World, report, running_gateway
from tests.support.schema_fuzzer import fuzzed, schemathesis
from tests.support.session_world import ADD, CALL, tokenizer

__all__ = ["tokenizer"]

DOCUMENT = openapi("policy", has_keys=False)


def check(value: Any, name: str) -> None:
    """Raises where a value does not follow a schema of the document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("ChatCompletion", {}),
    ("ChatCompletion", {"n": 3, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 7}),
    ("ChatCompletion", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stop": ["x"]}),
    ("ChatCompletion", {"tools": [ADD], "response_format": {"type": "text"}, "modalities": ["text"], "seed": 3}),
    ("Completion", {"prompt": "Hi"}),
    ("Completion", {"prompt": [[5, 6], [7]], "n": 2, "logprobs": 3, "max_tokens": 4}),
    ("Completion", {"prompt": ["a", [5]], "echo": True, "suffix": None, "best_of": 1}),
]


def request_of(kind: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request."""
    messages = {"messages": [{"role": "user", "content": "What is 5 + 7?"}]} if kind == "ChatCompletion" else {}
    path = "/v1/chat/completions" if kind == "ChatCompletion" else "/v1/completions"
    return path, {"model": "policy", **messages, **fields}


def test_requests_and_their_answers_follow_the_schema(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        scripts = [Script(), Script(CALL)]
        for script in scripts:
            async with running_gateway(tmp_path, tokenizer, script) as world:
                for kind, fields in GOOD:
                    path, body = request_of(kind, fields)
                    check(body, "ChatRequest" if kind == "ChatCompletion" else "CompletionRequest")
                    status, answer = await world.ask(path, **body)
                    assert status == 200, answer
                    check(answer, kind)
                    with pytest.raises(jsonschema.ValidationError):
                        check({**answer, "more": 1}, kind)
                await _others(world)

    asyncio.run(play())


async def _others(world: World) -> None:
    async with world.session.get(world.url + "/v1/models") as response:
        check(await response.json(), "ModelList")
    async with world.session.get(world.url + "/v1/models/policy") as response:
        check(await response.json(), "Model")
    for path, method in (("/v1/nothing", "GET"), ("/v1/models", "DELETE"), ("/v1/chat/completions", "POST")):
        async with world.session.request(method, world.url + path, data=b"{}") as response:
            assert response.status in (404, 405, 415)
            check(await response.json(), "Error")
    async with world.session.get(world.url + "/openapi.json") as response:
        assert await response.json() == DOCUMENT


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1, "max_completion_tokens": 5},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": 5}}]},
        {"messages": [{"role": "user", "content": "Hi", "tool_call_id": "x" * 300}]},
        {"messages": [{"role": "user", "content": "Hi", "tool_calls": "x"}]},
        {"functions": []},
        {"suffix": "x", "prompt": "a"},
        {"prompt": None},
    ],
)
def test_what_the_schema_forbids_is_refused(fields: dict[str, Any], tokenizer: Tokenizer) -> None:
    """What the fuzzer found accepted; each is refused by the schema, and by the gateway with 400."""
    kind, read = ("Completion", read_completion) if "prompt" in fields else ("ChatCompletion", read_chat)
    _, body = request_of(kind, fields)
    with pytest.raises(jsonschema.ValidationError):
        check(body, "ChatRequest" if kind == "ChatCompletion" else "CompletionRequest")
    error = refusal(read, tokenizer, body)
    assert error is not None
    assert error.status == 400


def test_every_route_of_the_application_is_described() -> None:
    settings = SimpleNamespace(model="policy", require_keys=False)
    parts: Any = SimpleNamespace(settings=settings, feedback=None)
    service: Any = None
    served = {getattr(route, "path", "") for route in application(parts, service).routes}
    assert {path.replace(":path", "") for path in served} - {"/openapi.json"} == set(DOCUMENT["paths"])


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"kind": "thumbs", "value": "up", "response_id": "chatcmpl-1"}, True),
        ({"feedback": [{"kind": "rating", "value": 0.5, "session": "s"}]}, True),
        ({"feedback": []}, False),
        ({"kind": "next_turn", "value": 1, "session": "s"}, False),
        ({"kind": "thumbs", "stars": 5}, False),
    ],
)
def test_feedback_is_described(body: dict[str, Any], fits: bool) -> None:
    with nullcontext() if fits else pytest.raises(jsonschema.ValidationError):
        check(body, "FeedbackRequest")


def test_a_key_is_asked_for_where_there_are_keys() -> None:
    assert "security" not in DOCUMENT
    assert openapi("policy")["security"] == [{"key": []}]


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_schemathesis_finds_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    program = schemathesis(tmp_path / "venv")

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script(), timeout_s=20.0) as world:

            async def alive() -> None:
                while True:
                    report(world.registry, world.replicas["r0"])
                    await asyncio.sleep(5)

            reporting = asyncio.ensure_future(alive())
            status, output = await fuzzed(program, tmp_path, world.url, 200)
            reporting.cancel()
            assert status == 0, output[-6000:]

    asyncio.run(play())

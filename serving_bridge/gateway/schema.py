"""The published schema of the API (OpenAPI 3.1), made from the types that requests are read by."""

from __future__ import annotations

from typing import Any

import msgspec

from serving_bridge.gateway.requests import MAX_CHOICES, ChatRequest, CompletionRequest
from serving_bridge.gateway.schema_answers import ANSWERS, ref
from serving_bridge.gateway.schema_feedback import FEEDBACK_ROUTES, feedback_schemas

_WORD = {"type": ["string", "null"], "maxLength": 256}
_PARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    },
}
_CONTENT = {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": _CONTENT,
            "name": _WORD,
            "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
            "tool_call_id": _WORD,
        },
    },
}
_TOOLS = {
    "type": ["array", "null"],
    "items": {
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "description": {"type": ["string", "null"]},
                    "parameters": {"type": ["object", "null"]},
                },
            },
        },
    },
}
_FORMATS = [
    {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
    {
        "type": "object",
        "required": ["type", "json_schema"],
        "properties": {
            "type": {"const": "json_schema"},
            "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": {"type": "object"}}},
        },
    },
    {"type": "null"},
]
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS,
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 64,
            "items": {"anyOf": [{"type": "string", "minLength": 1}, _IDS]},
        },
    ]
}
#: known, and refused with anything but null
_REFUSED = ("audio", "prediction", "functions", "function_call", "web_search_options")
_STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 429, 500, 502, 503, 504)
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def openapi(model: str, *, has_keys: bool = True) -> dict[str, Any]:
    """The document.

    Args:
      has_keys: whether a key is asked for.
    """
    _, components = msgspec.json.schema_components(
        [ChatRequest, CompletionRequest], ref_template="#/components/schemas/{name}"
    )
    chat, text = (components[name]["properties"] for name in ("ChatRequest", "CompletionRequest"))
    chat |= {"messages": _MESSAGES, "tools": _TOOLS, "response_format": {"anyOf": _FORMATS}}
    chat |= {"modalities": {"enum": [["text"], None]}, "max_completion_tokens": _counted(None)}
    chat |= {name: {"type": "null"} for name in _REFUSED}
    text |= {"prompt": _PROMPT, "suffix": {"enum": ["", None]}}
    components["CompletionRequest"]["required"] = ["model", "prompt"]
    for properties in (chat, text):
        properties |= {"model": {"const": model}, "max_tokens": _counted(None), "n": _counted(MAX_CHOICES)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Weir",
            "version": "1",
            "description": "OpenAI's API over a model that is trained meanwhile. A request that fits this schema may "
            "still be refused with 400: fields depend on each other, and prompts must fit the model's context.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _post("chat", "ChatRequest", "ChatCompletion", streams=True)},
            "/v1/completions": {"post": _post("completion", "CompletionRequest", "Completion", streams=True)},
            **{path: {"post": _post(name, request, answer)} for path, name, request, answer in FEEDBACK_ROUTES},
            "/v1/models": {"get": _get("models", "ModelList")},
            "/v1/models/{name}": {"get": {**_get("model", "Model"), "parameters": [_NAME]}},
        },
        "components": {"schemas": {**components, **feedback_schemas(), **ANSWERS}},
    }
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _counted(most: int | None) -> dict[str, Any]:
    bounds = {"minimum": 1} if most is None else {"minimum": 1, "maximum": most}
    return {"anyOf": [{"type": "integer", **bounds}, {"type": "null"}]}


def _post(name: str, request: str, answer: str, *, streams: bool = False) -> dict[str, Any]:
    stream: dict[str, Any] = {"text/event-stream": {}} if streams else {}
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(request)}}},
        "responses": {
            "200": {
                "description": "the answer",
                "content": {"application/json": {"schema": ref(answer)}, **stream},
            },
            **_errors(),
        },
    }


def _get(name: str, answer: str) -> dict[str, Any]:
    ok = {"description": "what is served", "content": {"application/json": {"schema": ref(answer)}}}
    return {"operationId": name, "responses": {"200": ok, **_errors()}}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": ref("Error")}}
    return {str(status): {"description": "refused", "content": content} for status in _STATUSES}

"""The published schema of the API (OpenAPI 3.1), made from the types that requests are read by."""

from __future__ import annotations

from typing import Any

import msgspec

from serving_bridge.gateway.requests import ChatRequest, CompletionRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"type": ["string", "array", "null"]},
            "name": {"type": "string"},
            "tool_calls": {"type": "array", "items": {"type": "object"}},
            "tool_call_id": {"type": "string"},
        },
    },
}
_TITLE = "OpenAI's API over a model that is trained meanwhile."
_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 500, 502, 503, 504)


def openapi(model: str) -> dict[str, Any]:
    """The document."""
    _, components = msgspec.json.schema_components(
        [ChatRequest, CompletionRequest], ref_template="#/components/schemas/{name}"
    )
    components["ChatRequest"]["properties"]["messages"] = _MESSAGES
    for name in ("ChatRequest", "CompletionRequest"):
        components[name]["properties"]["model"] = {"type": "string", "examples": [model]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Weir",
            "version": "1",
            "description": "OpenAI's API over a model that is trained meanwhile.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _post("chat", "ChatRequest")},
            "/v1/completions": {"post": _post("completion", "CompletionRequest")},
            "/v1/models": {"get": _get("models")},
            "/v1/models/{name}": {"get": {**_get("model"), "parameters": [_NAME]}},
        },
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}


def _post(name: str, request: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{request}"}
    ok = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "the answer", "content": ok}, **_errors()},
    }


def _get(name: str) -> dict[str, Any]:
    ok = {"application/json": {"schema": {"type": "object"}}}
    return {"operationId": name, "responses": {"200": {"description": "what is served", "content": ok}, **_errors()}}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": "refused", "content": content} for status in _STATUSES}

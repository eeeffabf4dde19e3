"""Schemas of what the gateway answers: completions, models and errors, with what Weir adds. Other fields never come."""

from __future__ import annotations

from typing import Any

_NULL: dict[str, Any] = {"type": "null"}
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_LOGPROB: dict[str, Any] = {"type": "number", "maximum": 1e-3}


def object_of(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _NULL]}


def ref(name: str) -> dict[str, Any]:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


_TOKEN = {
    "token": _TEXT,
    "logprob": _LOGPROB,
    "bytes": _or_null(_list({"type": "integer", "minimum": 0, "maximum": 255})),
}
_FINISHES = ["stop", "length", "tool_calls", "content_filter"]
_SPAN = object_of({"version": {"type": ["integer", "null"]}, "start": _COUNT, "end": _COUNT})
_FALLBACK = object_of({"case": _TEXT, "policy": _TEXT, "citations": _list(_TEXT)})
_CALL = object_of(
    {"id": _TEXT, "type": {"const": "function"}, "function": object_of({"name": _TEXT, "arguments": _TEXT})}
)


def _answer(kind: str, choice: str) -> dict[str, Any]:
    return object_of(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": {**_list(ref(choice)), "minItems": 1},
            "usage": ref("Usage"),
            "weir": ref("Weir"),
        }
    )


ANSWERS: dict[str, dict[str, Any]] = {
    "ChatCompletion": _answer("chat.completion", "ChatChoice"),
    "ChatChoice": object_of(
        {
            "index": _COUNT,
            "message": object_of(
                {
                    "role": {"const": "assistant"},
                    "content": {"type": ["string", "null"]},
                    "refusal": _NULL,
                    "tool_calls": {**_list(_CALL), "minItems": 1},
                },
                "tool_calls",
            ),
            "logprobs": _or_null(
                object_of(
                    {
                        "content": _list(object_of({**_TOKEN, "top_logprobs": _list(object_of(_TOKEN))})),
                        "refusal": _NULL,
                    }
                )
            ),
            "finish_reason": {"enum": _FINISHES},
        }
    ),
    "Completion": _answer("text_completion", "TextChoice"),
    "TextChoice": object_of(
        {
            "index": _COUNT,
            "text": _TEXT,
            "logprobs": _or_null(
                object_of(
                    {
                        "tokens": _list(_TEXT),
                        "token_logprobs": _list(_LOGPROB),
                        "top_logprobs": _list({"type": "object", "additionalProperties": _LOGPROB}),
                        "text_offset": _list(_COUNT),
                    }
                )
            ),
            "finish_reason": {"enum": _FINISHES},
        }
    ),
    "Usage": object_of({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}),
    "Weir": object_of(
        {
            "response_id": _TEXT,
            "arm": _TEXT,
            "wanted_arm": _TEXT,
            "policy_version": {"type": ["integer", "null"]},
            "policy_versions": _list(_list(_SPAN)),
            "session": _TEXT,
            "recorded": _TEXT,
            "confidence": _list(_or_null({"type": "number", "minimum": 0, "maximum": 1})),
            "low_confidence": _list({"type": "boolean"}),
            "fallback": _FALLBACK,
        },
        "wanted_arm",
        "session",
        "recorded",
        "confidence",
        "low_confidence",
        "fallback",
    ),
    "Model": object_of(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": {"const": "weir"},
            "max_model_len": {"type": "integer", "minimum": 1},
        }
    ),
    "ModelList": object_of({"object": {"const": "list"}, "data": _list(ref("Model"))}),
    "Error": object_of(
        {
            "error": object_of(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                }
            )
        }
    ),
}

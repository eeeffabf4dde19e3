"""Serves the small guard over OpenAI's API: it answers as Qwen3Guard does, so whatever asks that one can ask it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from aiohttp import web

from serving_bridge.guard_models import Classifier

MODEL = "weir-guard"
_MAX_BYTES = 1 << 20


def guard_application(classifier: Classifier) -> web.Application:
    """The routes /v1/chat/completions and /v1/models.

    The last message is judged. The answer is "Safety: Safe" or "Safety: Unsafe" with "Categories: None": the guard
    knows no kinds of harm.
    """
    app = web.Application(client_max_size=_MAX_BYTES)

    async def judge(request: web.Request) -> web.Response:
        try:
            asked = msgspec.json.decode(await request.read())
            text = asked["messages"][-1]["content"]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
            return _refused('expected {"model": ..., "messages": [{"role": "user", "content": "..."}]}')
        if not isinstance(text, str):
            return _refused("expected the last message's content to be a text")
        verdict = "Unsafe" if classifier.is_unsafe(text) else "Safe"
        return web.json_response(_completion(f"Safety: {verdict}\nCategories: None"))

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "weir"}]})

    app.router.add_post("/v1/chat/completions", judge)
    app.router.add_get("/v1/models", models)
    return app


def _completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "guard",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def _refused(message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_value"}
    return web.json_response({"error": error}, status=400)

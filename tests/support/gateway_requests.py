"""Requests to a gateway by hand: as bytes, as what becomes of a body, and waits for what they bring about."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.prompts import Prompts
from serving_bridge.text import Tokenizer


async def until(what: Callable[[], bool], limit_s: float = 5.0) -> float:
    """Seconds until it holds."""
    began_s = time.monotonic()
    while not what():
        assert time.monotonic() - began_s < limit_s, "it never came to hold"
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s


def raw_request(body: Any) -> bytes:
    payload = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(payload) + payload


def refusal(read: Any, tokenizer: Tokenizer, body: Any) -> GatewayError | None:
    """Of a body that is read and encoded; None if it passes."""
    prompts = Prompts(tokenizer, max_context=256)
    try:
        asked = read(json.dumps(body).encode())
        ids = asyncio.run(prompts.ids(asked))
        rooms = [prompts.room(prompt, asked.sampling.max_tokens, 64) for prompt in ids]
    except GatewayError as error:
        return error
    assert all(0 < room <= 64 for room in rooms)
    return None

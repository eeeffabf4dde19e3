"""An engine that streams the same text at a set pace, as vLLM's streaming route and as OpenAI's API: no model, no cost.

    python -m tools.bench.gateway.engine --port 8000 --pace-ms 5 --tokenizer FOLDER

Both routes send one event for each token, at the same moments after the request came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer

from tools.command_line import CommandParser

TEXT = "The quick brown fox jumps over the lazy dog and runs on through the wood until the night falls. " * 12


def pieces(tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Token ids of the text, and each one's own text."""
    ids = list(tokenizer.encode(TEXT, add_special_tokens=False).ids)
    return ids, [tokenizer.decode([token]) for token in ids]


class Engine:
    """The two routes over one text."""

    def __init__(self, tokenizer: Tokenizer, pace_s: float) -> None:
        self._ids, self._texts = pieces(tokenizer)
        self._pace_s = pace_s

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        """vLLM's /inference/v1/generate."""
        asked = json.loads(await request.read())
        count = int(asked["sampling_params"]["max_tokens"])

        def event(place: int) -> dict[str, Any]:
            is_last = place == count - 1
            spans = [{"version": "1", "start": 0, "end": count}] if is_last else None
            finish = "length" if is_last else None
            choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish, "stop_reason": None}
            choice |= {"token_ids": [self._ids[place]], "weight_versions": spans, "routed_experts": None}
            if "logprobs" in asked["sampling_params"]:
                own = {"token_id": self._ids[place], "logprob": -0.5, "rank": 1}
                choice["logprobs"] = {"content": [{**own, "top_logprobs": [own]}]}
            return {"request_id": "r", "choices": [choice]}

        return await self._stream(request, count, event)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's /v1/chat/completions."""
        count = int(json.loads(await request.read())["max_tokens"])
        head = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": "policy"}

        def event(place: int) -> dict[str, Any]:
            delta: dict[str, Any] = {"content": self._texts[place]}
            if place == 0:
                delta["role"] = "assistant"
            finish = "length" if place == count - 1 else None
            return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

        return await self._stream(request, count, event)

    async def _stream(self, request: web.Request, count: int, event: Any) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for place in range(count):
            await asyncio.sleep(began_s + (place + 1) * self._pace_s - loop.time())
            await response.write(b"data: " + json.dumps(event(place)).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(text="vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n")


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace-ms", type=float, required=True)
    parser.add_argument("--tokenizer", required=True)
    given = parser.parse_args()
    engine = Engine(Tokenizer.from_file(f"{given.tokenizer}/tokenizer.json"), given.pace_ms / 1000)
    app = web.Application()
    app.router.add_post("/inference/v1/generate", engine.tokens)
    app.router.add_post("/v1/chat/completions", engine.chat)
    app.router.add_get("/metrics", _metrics)
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()

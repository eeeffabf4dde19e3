"""Sampling without vLLM's HTTP routes: from a checked request straight to the engine, and back as packed arrays.

vLLM's own route makes Python objects of every token, a JSON object of each, and passes through a dozen layers of web
framework: for short answers that is as much work as the sampling itself.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving_bridge.vllm_plugin.packed import PackedAnswer, PackedChoice

_log = logging.getLogger(__name__)


class _Sampling(msgspec.Struct, forbid_unknown_fields=True):
    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


class _Asked(msgspec.Struct):
    token_ids: list[int]
    sampling_params: _Sampling
    priority: int = 0


async def sample(engine: EngineClient, body: bytes) -> tuple[int, bytes]:
    """The answer to a request body that the gate let in: (HTTP status, payload).

    The payload is a `PackedAnswer`, or an error as vLLM's own routes send it. Cancelling ends the request.
    """
    try:
        asked = msgspec.json.decode(body, type=_Asked)
        output = await _sampled(engine, asked)
        return 200, msgspec.msgpack.encode(PackedAnswer([_packed(choice) for choice in output.outputs]))
    except Exception as error:  # noqa: BLE001  (every failure is answered, as by vLLM)
        refusal = create_error_response(error)
        if refusal.error.code >= 500:
            _log.exception("a request was not answered")
        return refusal.error.code, refusal.model_dump_json().encode()


async def _sampled(engine: EngineClient, asked: _Asked) -> RequestOutput:
    wanted = asked.sampling_params
    room = engine.model_config.max_model_len - len(asked.token_ids)
    parameters = SamplingParams(
        n=wanted.n,
        max_tokens=max(1, min(wanted.max_tokens, room)),
        temperature=wanted.temperature,
        seed=wanted.seed,
        stop_token_ids=wanted.stop_token_ids,
        ignore_eos=wanted.ignore_eos,
        logprobs=0,
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )
    last = None
    name = f"weir-{uuid.uuid4().hex}"
    async for output in engine.generate(tokens_input(asked.token_ids), parameters, name, priority=asked.priority):
        last = output
    if last is None:
        raise RuntimeError("the engine ended a request without an answer")
    return last


def _packed(choice: CompletionOutput) -> PackedChoice:
    tokens = np.array(choice.token_ids, "<i4")
    return PackedChoice(
        index=choice.index,
        finish_reason=choice.finish_reason,
        tokens=tokens.tobytes(),
        logprobs=_logprobs(choice, tokens).tobytes(),
        spans=[(span.version, span.start, span.end) for span in choice.weight_versions or ()],
    )


def _logprobs(choice: CompletionOutput, tokens: np.ndarray) -> np.ndarray:
    """float32[T]: of each position's first entry, which is the sampled token's.

    Raises:
      RuntimeError: it is another token's.
    """
    found: Any = choice.logprobs
    if found is None or not len(tokens):
        return np.empty(0, "<f4")
    first: Sequence[int] = found.start_indices
    if [found.token_ids[at] for at in first] != choice.token_ids:
        raise RuntimeError(f"log-probs of {len(first)} positions don't belong to {len(tokens)} tokens")
    with np.errstate(over="ignore"):
        return np.array([found.logprobs[at] for at in first], "<f4")


async def until_gone(receive: Any, work: asyncio.Task[Any]) -> bool:
    """Waits for the work, and breaks it off when the client goes away; returns whether it ended by itself."""
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        for task in (leaving, work):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

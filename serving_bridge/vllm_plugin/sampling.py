"""Sampling without vLLM's HTTP routes: from a checked request straight to the engine, and back as packed arrays.

vLLM's own route makes Python objects of every token, a JSON object of each, and passes through a dozen layers of web
framework. For short answers that takes the server more than half of the engine's own CPU time (docs/benchmarks.md).
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

from serving_bridge.access import Generate
from serving_bridge.vllm_plugin.packed import PackedAnswer, PackedChoice

_log = logging.getLogger(__name__)


async def sample(engine: EngineClient, asked: Generate) -> tuple[int, bytes]:
    """The answer to a request that the gate let in: (HTTP status, payload).

    The payload is a `PackedAnswer`, a list of them where several prompts were given, or an error as vLLM's own routes
    send it. Cancelling ends the request.
    """
    try:
        if asked.prompts is None:
            return 200, msgspec.msgpack.encode(await _answer(engine, asked))
        each = [msgspec.structs.replace(asked, token_ids=prompt, prompts=None) for prompt in asked.prompts]
        return 200, msgspec.msgpack.encode(await answers(engine, each))
    except Exception as error:  # noqa: BLE001  (every failure is answered, as by vLLM)
        refusal = create_error_response(error)
        if refusal.error.code >= 500:
            _log.exception("a request was not answered")
        return refusal.error.code, refusal.model_dump_json().encode()


async def answers(engine: EngineClient, asked: Sequence[Generate]) -> list[PackedAnswer]:
    """The answers to several requests of one prompt each, in order; when one fails the others are ended."""
    tasks = [asyncio.ensure_future(_answer(engine, one)) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(engine: EngineClient, asked: Generate) -> PackedAnswer:
    prompt = msgspec.json.decode(asked.token_ids, type=list[int])
    output = await _sampled(engine, prompt, asked)
    of_prompt = None
    if asked.sampling_params.prompt_logprobs is not None:
        of_prompt = _logprobs(output.prompt_logprobs, prompt, first=1)  # nothing comes before the first token
    return PackedAnswer([_packed(choice) for choice in output.outputs], of_prompt)


async def _sampled(engine: EngineClient, prompt: list[int], asked: Generate) -> RequestOutput:
    wanted = asked.sampling_params
    room = engine.model_config.max_model_len - len(prompt)
    parameters = SamplingParams(
        n=wanted.n,
        max_tokens=max(1, min(wanted.max_tokens, room)),
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        seed=wanted.seed,
        stop_token_ids=wanted.stop_token_ids,
        ignore_eos=wanted.ignore_eos,
        logprobs=0,
        prompt_logprobs=wanted.prompt_logprobs,
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )
    last = None
    name = f"generate-tokens-{asked.request_id or uuid.uuid4().hex}"  # as vLLM's own route names them
    async for output in engine.generate(tokens_input(prompt), parameters, name, priority=asked.priority):
        last = output
    if last is None:
        raise RuntimeError("the engine ended a request without an answer")
    return last


def _packed(choice: CompletionOutput) -> PackedChoice:
    return PackedChoice(
        index=choice.index,
        finish_reason=choice.finish_reason,
        tokens=np.array(choice.token_ids, "<i4").tobytes(),
        logprobs=_logprobs(choice.logprobs, choice.token_ids),
        spans=[(span.version, span.start, span.end) for span in choice.weight_versions or ()],
    )


def _logprobs(found: Any, tokens: Sequence[int], first: int = 0) -> bytes:
    """float32[T]: of each position from `first` on its first entry, which is that of the token itself.

    Args:
      found: vLLM's `FlatLogprobs`, with one entry or more for each position.

    Raises:
      RuntimeError: they are not those of these tokens.
    """
    starts: Sequence[int] = [] if found is None else found.start_indices[first:]
    if [found.token_ids[at] for at in starts] != list(tokens[first:]):
        raise RuntimeError(f"log-probs of {len(starts)} positions don't belong to {len(tokens) - first} tokens")
    with np.errstate(over="ignore"):
        return np.array([found.logprobs[at] for at in starts], "<f4").tobytes()


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

"""A weight round's swap inside vLLM's server: pause, apply what was staged, and answer the proof, in one request.

By vLLM's own routes this takes eight requests, each of which waits for its turn on a busy machine while nothing is
sampled. And vLLM's pause sleeps 20 ms so that answers are seen before it returns; nothing here relies on that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.entrypoints.rl.online.metrics import weight_operation_metrics
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.v1.engine.async_llm import AsyncLLM

from serving_bridge.access import UNPROVEN, Generate, Sampling, Serve, Swap, probe_ids
from serving_bridge.vllm_plugin.packed import PackedAnswer, SwapAnswer
from serving_bridge.vllm_plugin.sampling import answers

_log = logging.getLogger(__name__)

_PROBE = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
#: ahead of every sampling request where the server is full
_PROBE_PRIORITY = -1


async def swap(engine: AsyncLLM, asked: Swap, *, control_token: str, check: Callable[[], None]) -> tuple[int, bytes]:
    """Leaves the engine paused, and its weights without the name of a version: (HTTP status, payload).

    The payload is a `SwapAnswer`; it is vLLM's error where the engine was not paused. Must not be cancelled.

    Args:
      check: raises once another round is to be obeyed; called before each thing that changes something.
    """
    done = SwapAnswer(num_running=engine.output_processor.get_num_unfinished_requests())
    try:
        await _pause(engine)
    except Exception as error:  # noqa: BLE001  (every failure is answered, as by vLLM)
        return _failed("the engine was not paused", error)
    try:
        await _apply(engine, asked, check)
        done.is_applied, started = True, time.perf_counter()
        done.proof = await _proof(engine, asked, control_token)
        done.proof_s = time.perf_counter() - started
    except Exception as error:  # noqa: BLE001  (who asked judges by how far it came)
        _log.exception("version %d was not %s", asked.version, "proven" if done.is_applied else "applied")
        done.error = str(error) or repr(error)
    return 200, msgspec.msgpack.encode(done)


async def serve(engine: AsyncLLM, asked: Serve, *, check: Callable[[], None]) -> tuple[int, bytes]:
    """Gives the weights the name of a version, then ends the pause: (HTTP status, payload); `check` as in `swap`."""
    try:
        await engine.update_weight_version(str(asked.version))
        check()
        await engine.resume_generation()
    except Exception as error:  # noqa: BLE001  (every failure is answered, as by vLLM)
        return _failed("the pause was not ended", error)
    return 200, b"{}"


async def _pause(engine: AsyncLLM) -> None:
    """As `AsyncLLM.pause_generation`, but for its sleep: answers in flight stay, caches are cleared."""
    await engine.renderer.clear_mm_cache_async()
    await engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=True)


async def _apply(engine: AsyncLLM, asked: Swap, check: Callable[[], None]) -> None:
    """Once weights may have changed they have no version's name, also where they were the same before."""
    check()
    if not asked.applies:
        await engine.update_weight_version(UNPROVEN)
        return
    info = {"version": asked.version, "content_sha256": asked.content_sha256, "round_id": asked.round_id}
    with weight_operation_metrics().record("update"):
        await engine.update_weights(WeightTransferUpdateRequest(update_info=info))
    check()
    with weight_operation_metrics().record("finish"):
        await engine.finish_weight_update(UNPROVEN)


async def _proof(engine: AsyncLLM, asked: Swap, control_token: str) -> list[PackedAnswer]:
    """The golden prompts' own log-probs, in their order."""
    ids = probe_ids(len(asked.golden), control_token)
    return await answers(
        engine,
        [
            Generate(sampling_params=_PROBE, token_ids=tokens, request_id=name, priority=_PROBE_PRIORITY)
            for tokens, name in zip(asked.golden, ids, strict=True)
        ],
    )


def _failed(what: str, error: Exception) -> tuple[int, bytes]:
    _log.error("%s", what, exc_info=error)
    refusal = create_error_response(error)
    return max(500, refusal.error.code), refusal.model_dump_json().encode()

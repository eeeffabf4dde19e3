"""Tokens of answers that nobody looks at before they end: kept in the engine, and sent to vLLM's server in one piece.

A stock engine sends every token of every request to the server in each step, which decodes it, looks its request up and
waits for the rest. Where only the whole answer is asked for, that is work for nothing, and grows with the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request

#: Everything is sent this often, so that an answer which is broken off loses the tokens of a moment only.
_EVERY_S = 0.1


class HeldOutputs:
    """What a scheduler's steps gave for unfinished requests, and has not been sent yet.

    Args:
      clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[int, list[EngineCoreOutput]]] = {}
        self._sent_s = clock()

    def __bool__(self) -> bool:
        return bool(self._held)

    def pass_on(
        self, outputs: dict[int, EngineCoreOutputs], requests: Mapping[str, Request], *, all_of_it: bool
    ) -> dict[int, EngineCoreOutputs]:
        """One step's outputs by client, without those that are held from now on, and with those that no longer are.

        All that is sent together was sampled with the same weights as this step's tokens, as long as everything is sent
        before weights change: vLLM names one version for all outputs of a step.

        Args:
          requests: those that the scheduler knows; what is held of others is dropped.
          all_of_it: hold nothing, and send what was held.
        """
        now_s = self._clock()
        if due := all_of_it or now_s >= self._sent_s + _EVERY_S:
            self._sent_s = now_s
        for client, step in outputs.items():
            step.outputs = [sent for output in step.outputs if (sent := self._one(client, output, requests, due))]
        if due:
            for name, (client, parts) in self._held.items():
                if name in requests:
                    outputs.setdefault(client, EngineCoreOutputs()).outputs.append(_joined(parts))
            self._held.clear()
        return outputs

    def _one(
        self, client: int, output: EngineCoreOutput, requests: Mapping[str, Request], due: bool
    ) -> EngineCoreOutput | None:
        """What is sent of one request, if anything."""
        name = output.request_id
        if not due and _may_wait(output, requests.get(name)):
            self._held.setdefault(name, (client, []))[1].append(output)
            return None
        _, parts = self._held.pop(name, (client, []))
        return _joined([*parts, output])


def _may_wait(output: EngineCoreOutput, request: Request | None) -> bool:
    if request is None or output.finish_reason is not None:
        return False
    asked = request.sampling_params
    return (
        asked is not None
        and asked.output_kind == RequestOutputKind.FINAL_ONLY
        and not asked.stop  # the server looks for these in the text
        and output.pooling_output is None
        and output.routed_experts is None
        and output.new_sampling_mask is None
    )


def _joined(parts: list[EngineCoreOutput]) -> EngineCoreOutput:
    """One output that says what all of them say in turn."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    last.new_token_ids = [token for part in parts for token in part.new_token_ids]
    last.events = [event for part in parts for event in part.events or ()] or None
    last.new_logprobs = _joined_logprobs([part.new_logprobs for part in parts if part.new_logprobs is not None])
    for name in ("prefill_stats", "new_prompt_logprobs_tensors", "prompt_token_id_logprobs"):
        setattr(last, name, _first([getattr(part, name) for part in parts]))
    return last


def _joined_logprobs(parts: list[LogprobsLists]) -> LogprobsLists | None:
    if not parts:
        return None
    ids, logprobs, ranks, _ = zip(*parts, strict=True)
    return LogprobsLists(np.concatenate(ids), np.concatenate(logprobs), np.concatenate(ranks))


def _first(values: list[Any]) -> Any:
    return next((value for value in values if value is not None), None)

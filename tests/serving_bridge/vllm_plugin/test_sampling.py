"""From a request's body to the engine and back as packed arrays; the engine is a stub here."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from serving_bridge.access import Generate
from serving_bridge.vllm_plugin import PackedAnswer

pytest.importorskip("vllm", reason="vLLM is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, while it is imported
    from vllm.exceptions import QueueOverflowError, VLLMValidationError
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput, WeightVersionSpan
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.exceptions import EngineDeadError

    from serving_bridge.vllm_plugin.sampling import sample, until_gone


def body(**parameters: Any) -> bytes:
    return json.dumps(
        {"token_ids": [5, 6], "sampling_params": {"max_tokens": 9} | parameters, "priority": 3, "packed": True}
    ).encode()


def read(body: bytes) -> Generate:
    """As the gate gives it."""
    return msgspec.json.decode(body, type=Generate)


def completion(index: int, tokens: list[int], *, of: list[int] | None = None) -> CompletionOutput:
    """An answer whose log-probs are minus the ids; each position also names a likelier token after its own."""
    logprobs = FlatLogprobs()
    for token in of or tokens:
        logprobs.append_fast([token, 90], [-float(token), -0.5], iter([2, 1]), [None, None])  # type: ignore[arg-type]
    spans = [WeightVersionSpan("3", 0, 1), WeightVersionSpan("4", 1, len(tokens))]
    return CompletionOutput(
        index, "", tokens, None, logprobs, finish_reason="stop", weight_versions=spans  # type: ignore[arg-type]
    )  # fmt: skip


class Engine:
    """Answers every request with these outputs, or fails."""

    model_config = SimpleNamespace(max_model_len=10)

    def __init__(
        self,
        *outputs: list[CompletionOutput],
        error: Exception | None = None,
        hangs: bool = False,
        of_prompt: FlatLogprobs | None = None,
    ) -> None:
        self._of_prompt = of_prompt
        self._outputs, self._error, self._hangs = outputs, error, hangs
        self.asked: list[tuple[Any, Any, int]] = []
        self.names: set[str] = set()
        self.ended = 0

    async def generate(self, prompt: Any, parameters: Any, name: str, *, priority: int) -> AsyncIterator[Any]:
        self.asked.append((prompt, parameters, priority))
        self.names.add(name)
        try:
            if self._hangs:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
            for outputs in self._outputs:
                yield SimpleNamespace(outputs=outputs, prompt_logprobs=self._of_prompt)
        finally:
            self.ended += 1


def answered(engine: Engine, asked: bytes | None = None) -> tuple[int, bytes]:
    return asyncio.run(sample(engine, read(asked or body())))  # type: ignore[arg-type]


def refused(engine: Engine, asked: bytes | None = None) -> tuple[int, str]:
    status, payload = answered(engine, asked)
    return status, msgspec.json.decode(payload)["error"]["message"]


def test_answers_are_packed_with_their_log_probs_and_versions() -> None:
    engine = Engine([completion(0, [7, 8])], [completion(0, [7, 8, 1]), completion(1, [])])
    status, payload = answered(
        engine, body(n=2, temperature=0.5, top_p=0.9, seed=4, stop_token_ids=[1], ignore_eos=True)
    )
    first, second = msgspec.msgpack.decode(payload, type=PackedAnswer).choices
    assert (status, first.index, second.index, first.finish_reason) == (200, 0, 1, "stop")
    assert np.frombuffer(first.tokens, "<i4").tolist() == [7, 8, 1]
    assert np.frombuffer(first.logprobs, "<f4").tolist() == [-7.0, -8.0, -1.0]
    assert (first.spans, second.tokens, second.logprobs) == ([("3", 0, 1), ("4", 1, 3)], b"", b"")
    ((prompt, parameters, priority),) = engine.asked
    assert (prompt["prompt_token_ids"], priority) == ([5, 6], 3)
    assert (parameters.n, parameters.temperature, parameters.top_p, parameters.seed) == (2, 0.5, 0.9, 4)
    assert (parameters.stop_token_ids, parameters.ignore_eos, parameters.detokenize) == ([1], True, False)
    assert (parameters.output_kind, parameters.logprobs) == (RequestOutputKind.FINAL_ONLY, 0)


def test_log_probs_of_a_prompt_are_those_of_its_tokens_from_the_second_on() -> None:
    found = FlatLogprobs()
    found.append(None)
    for token in (6, 7):
        found.append_fast([token, 90], [-float(token), -0.5], iter([2, 1]), [None, None])  # type: ignore[arg-type]
    engine = Engine([completion(0, [8])], of_prompt=found)
    asked = (
        body(prompt_logprobs=0)
        .replace(b"[5, 6]", b"[5, 6, 7]")
        .replace(b'"priority"', b'"request_id": "r-1", "priority"')
    )
    answer = msgspec.msgpack.decode(answered(engine, asked)[1], type=PackedAnswer)
    assert np.frombuffer(answer.prompt_logprobs or b"", "<f4").tolist() == [-6.0, -7.0]
    assert (engine.names, engine.asked[0][1].prompt_logprobs) == ({"generate-tokens-r-1"}, 0)
    strange = asked.replace(b"[5, 6, 7]", b"[5, 6, 8]")
    assert refused(engine, strange) == (500, "log-probs of 2 positions don't belong to 2 tokens")


SEVERAL = body(temperature=0.0).replace(b'"token_ids": [5, 6]', b'"prompts": [[5, 6], [7], [8, 9]]')


def test_several_prompts_are_asked_side_by_side_and_answered_in_their_order() -> None:
    engine = Engine([completion(0, [7, 8])])
    status, payload = answered(engine, SEVERAL)
    answers = msgspec.msgpack.decode(payload, type=list[PackedAnswer])
    assert (status, [len(answer.choices) for answer in answers]) == (200, [1, 1, 1])
    assert [prompt["prompt_token_ids"] for prompt, _, _ in engine.asked] == [[5, 6], [7], [8, 9]]
    assert len(engine.names) == 3


def test_one_prompt_that_fails_ends_the_others() -> None:
    class Second(Engine):
        """Fails one prompt, and never answers the others."""

        async def generate(self, prompt: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
            self._error, self._hangs = ValueError("no"), prompt["prompt_token_ids"] != [7]
            async for output in super().generate(prompt, *arguments, **options):
                yield output

    engine = Second()
    assert refused(engine, SEVERAL) == (400, "no")
    assert engine.ended == 3


def test_log_probs_of_a_prompt_are_not_sent_unasked() -> None:
    status, payload = answered(Engine([completion(0, [8])]))
    assert (status, msgspec.msgpack.decode(payload, type=PackedAnswer).prompt_logprobs) == (200, None)


def test_an_answer_is_cut_by_the_context_length_as_by_vllm() -> None:
    engine = Engine([completion(0, [7])])
    answered(engine, body(max_tokens=4))
    answered(engine, body(max_tokens=400))
    assert [parameters.max_tokens for _, parameters, _ in engine.asked] == [4, 8]
    assert len(engine.names) == 2


def test_log_probs_of_other_tokens_are_a_failure_of_the_server() -> None:
    engine = Engine([completion(0, [7, 8], of=[7, 9])])
    assert refused(engine) == (500, "log-probs of 2 positions don't belong to 2 tokens")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (VLLMValidationError("the prompt is too long"), 400, "the prompt is too long"),
        (ValueError("no such token"), 400, "no such token"),
        (QueueOverflowError(), 503, "busy"),
        (EngineDeadError(), 500, "EngineCore"),
        (RuntimeError("broken"), 500, "broken"),
    ],
)
def test_failures_have_the_status_that_vllm_gives_them(error: Exception, status: int, said: str) -> None:
    found, message = refused(Engine(error=error))
    assert (found, said in message) == (status, True), message


def test_an_engine_that_ends_without_an_answer_has_failed() -> None:
    assert refused(Engine()) == (500, "the engine ended a request without an answer")


def test_ids_that_are_no_numbers_are_refused() -> None:
    assert refused(Engine(), b'{"token_ids": ["5"], "sampling_params": {"max_tokens": 1}}')[0] == 400


def left_after(engine: Engine, *messages: str) -> bool:
    """Whether the work ended by itself; the client sends these and then nothing more."""

    async def story() -> bool:
        waiting, before = list(messages), asyncio.all_tasks()

        async def receive() -> dict[str, str]:
            if not waiting:
                await asyncio.Event().wait()
            await asyncio.sleep(0.01)
            return {"type": waiting.pop(0)}

        work = asyncio.ensure_future(sample(engine, read(body())))  # type: ignore[arg-type]
        ended = await until_gone(receive, work)
        assert work.done()
        assert asyncio.all_tasks() == before
        return ended

    return asyncio.run(asyncio.wait_for(story(), 10))


def test_a_client_that_goes_away_ends_its_request() -> None:
    engine = Engine(hangs=True)
    assert not left_after(engine, "http.request", "http.disconnect")
    assert engine.ended == 1


def test_a_client_that_waits_gets_its_answer() -> None:
    assert left_after(Engine([completion(0, [7])]), "http.request")

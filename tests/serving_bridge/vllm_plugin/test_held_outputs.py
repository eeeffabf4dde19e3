"""Tokens of unfinished answers wait in the engine; what is sent at last says all that a stock engine says."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, while it is imported
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.outputs import LogprobsLists

    from serving_bridge.vllm_plugin.held_outputs import HeldOutputs


class World:
    """Requests of one engine, and the time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.held = HeldOutputs(lambda: self.now_s)
        self.requests: dict[str, Any] = {}

    def add(self, name: str, kind: Any = RequestOutputKind.FINAL_ONLY, **asked: Any) -> None:
        parameters = SamplingParams(output_kind=kind, **asked)
        self.requests[name] = SimpleNamespace(sampling_params=parameters)

    def step(self, *outputs: EngineCoreOutput, client: int = 0, all_of_it: bool = False) -> dict[int, list[Any]]:
        """What is sent of a step, by client; the clock goes on by 10 ms."""
        self.now_s += 0.01
        for output in outputs:
            if output.finish_reason is not None:
                self.requests.pop(output.request_id)
        given = {client: EngineCoreOutputs(outputs=list(outputs))}
        sent = self.held.pass_on(given, self.requests, all_of_it=all_of_it)
        return {to: step.outputs for to, step in sent.items()}


def output(name: str, *tokens: int, end: Any = None, **fields: Any) -> EngineCoreOutput:
    """Tokens whose log-probs are minus a tenth of the ids, and whose ranks are the ids."""
    column = np.array(tokens, np.int32).reshape(-1, 1)
    logprobs = LogprobsLists(column, -column.astype(np.float32) / 10, column[:, 0])
    return EngineCoreOutput(name, list(tokens), new_logprobs=logprobs, finish_reason=end, **fields)


@pytest.fixture
def world() -> World:
    world = World()
    world.add("a")
    world.add("b")
    return world


def test_an_answer_is_sent_whole_when_it_ends(world: World) -> None:
    assert world.step(output("a", 1, prefill_stats="stats", events=["queued"]), output("b", 7)) == {0: []}
    assert world.step(output("a", 2, 3), output("b", 8)) == {0: []}
    ((sent,),) = world.step(output("a", 4, end=FinishReason.STOP, stop_reason=4)).values()
    assert (sent.request_id, sent.new_token_ids, sent.finish_reason) == ("a", [1, 2, 3, 4], FinishReason.STOP)
    assert (sent.stop_reason, sent.prefill_stats, sent.events) == (4, "stats", ["queued"])
    ids, logprobs, ranks, _ = sent.new_logprobs
    assert (ids.tolist(), ranks.tolist()) == ([[1], [2], [3], [4]], [1, 2, 3, 4])
    np.testing.assert_allclose(logprobs[:, 0], [-0.1, -0.2, -0.3, -0.4])
    ((sent,),) = world.step(output("b", 9, end=FinishReason.LENGTH)).values()
    assert sent.new_token_ids == [7, 8, 9]
    assert not world.held


def test_everything_is_sent_every_tenth_of_a_second(world: World) -> None:
    sent = [world.step(output("a", token), output("b", 50 + token))[0] for token in range(1, 22)]
    told = [(at, [(one.request_id, one.new_token_ids) for one in step]) for at, step in enumerate(sent) if step]
    assert [at for at, _ in told] == [9, 19]
    assert told[0][1] == [("a", [*range(1, 11)]), ("b", [*range(51, 61)])]
    assert told[1][1] == [("a", [*range(11, 21)]), ("b", [*range(61, 71)])]


def test_what_is_held_of_others_is_sent_with_a_step_that_has_nothing_of_them(world: World) -> None:
    world.step(output("a", 1))
    world.step(output("b", 7), client=3)
    assert bool(world.held)
    sent = world.step(all_of_it=True)
    assert {to: [(one.request_id, one.new_token_ids) for one in step] for to, step in sent.items()} == {
        0: [("a", [1])],
        3: [("b", [7])],
    }
    assert not world.held


def test_nothing_is_held_while_everything_is_to_be_sent(world: World) -> None:
    world.step(output("a", 1))
    ((first, second),) = world.step(output("a", 2), output("b", 7), all_of_it=True).values()
    assert (first.new_token_ids, second.new_token_ids) == ([1, 2], [7])
    assert not world.held


def test_what_is_held_of_a_request_that_is_gone_is_dropped(world: World) -> None:
    world.step(output("a", 1), output("b", 7))
    del world.requests["a"]
    ((sent,),) = world.step(all_of_it=True).values()
    assert sent.request_id == "b"
    assert not world.held


def test_log_probs_of_the_prompt_are_not_lost(world: World) -> None:
    world.step(output("a", 1, new_prompt_logprobs_tensors="of the prompt", prompt_token_id_logprobs="scores"))
    world.step(output("a", 2))
    ((sent,),) = world.step(output("a", 3, end=FinishReason.STOP)).values()
    assert (sent.new_prompt_logprobs_tensors, sent.prompt_token_id_logprobs) == ("of the prompt", "scores")


def test_answers_without_log_probs_have_none(world: World) -> None:
    world.step(EngineCoreOutput("a", [1]))
    ((sent,),) = world.step(EngineCoreOutput("a", [2], finish_reason=FinishReason.STOP)).values()
    assert (sent.new_token_ids, sent.new_logprobs, sent.events) == ([1, 2], None, None)


@pytest.mark.parametrize(
    ("kind", "asked", "fields"),
    [
        (RequestOutputKind.DELTA, {}, {}),
        (RequestOutputKind.CUMULATIVE, {}, {}),
        (RequestOutputKind.FINAL_ONLY, {"stop": ["x"]}, {}),
        (RequestOutputKind.FINAL_ONLY, {}, {"routed_experts": np.zeros(1)}),
        (RequestOutputKind.FINAL_ONLY, {}, {"new_sampling_mask": "mask"}),
        (RequestOutputKind.FINAL_ONLY, {}, {"pooling_output": "pooled"}),
    ],
)
def test_what_somebody_looks_at_earlier_is_sent_at_once(kind: Any, asked: Any, fields: Any) -> None:
    world = World()
    world.add("a", kind, **asked)
    ((sent,),) = world.step(output("a", 1, **fields)).values()
    assert sent.new_token_ids == [1]


def test_requests_of_no_sampling_are_not_held() -> None:
    world = World()
    world.requests["a"] = SimpleNamespace(sampling_params=None)
    ((sent,),) = world.step(output("a", 1)).values()
    assert sent.new_token_ids == [1]

"""Clients that bring token ids: prompts that continue recorded ids continue a branch, over vLLM's own route."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from serving_bridge.sessions import Session
from serving_bridge.text import Tokenizer
from tests.support.session_world import served, session_of, user
from tests.support.session_world import tokenizer as tokenizer

PROMPT = [1, 40, 41, 42]
SAMPLING = {"max_tokens": 50, "n": 1, "logprobs": 1, "stop_token_ids": [], "temperature": 0.3}


def asked(session: Session, prompt: list[int], **options: Any) -> list[int]:
    answered = asyncio.run(session.generate(prompt, **options))
    return [*answered.answer.tokens.tolist()]


def posted(session: Session, *bodies: Any) -> list[tuple[int, Any]]:
    async def post(client: openai.AsyncOpenAI, url: str) -> list[tuple[int, Any]]:
        place = url.removesuffix("/v1") + "/inference/v1/generate"
        told = []
        async with aiohttp.ClientSession() as http:
            for body in bodies:
                sent: Any = {"data": body} if isinstance(body, bytes) else {"json": body}
                async with http.post(place, **sent) as response:
                    told.append((response.status, await response.json()))
        return told

    found: list[tuple[int, Any]] = served(session, post)
    return found


def test_a_prompt_that_continues_recorded_ids_continues_the_branch(tokenizer: Tokenizer) -> None:
    session, scripted = session_of(tokenizer, "one", "two", "three", "four")
    first = asked(session, PROMPT)
    second = asked(session, [*PROMPT, *first, 50, 51])
    asked(session, [*PROMPT, *first, 50, 51, *second, 52])
    asked(session, [*PROMPT, *first, 60])
    assert [answered.parent for answered in session.answers] == [None, 0, 1, 0]
    assert [answered.given for answered in session.answers] == [tuple(PROMPT), (50, 51), (52,), (60,)]
    assert scripted.contexts[2] == [*PROMPT, *first, 50, 51, *second, 52] == session.ids(2)[: len(scripted.contexts[2])]
    assert session.rebuilt == 0


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        (lambda ids: [*ids[:-2], 77, 78], 1),  # shows the beginning of an answer, then something else
        (lambda ids: ids[:-1], 1),
        (lambda ids: [*PROMPT], 0),  # asks the same again
        (lambda ids: [9, *ids], 0),
    ],
)
def test_ids_that_were_not_sampled_are_context_and_nothing_else(
    tokenizer: Tokenizer, change: Any, rebuilt: int
) -> None:
    session, scripted = session_of(tokenizer, "one", "two")
    prompt = change([*PROMPT, *asked(session, PROMPT)])
    asked(session, prompt)
    assert (session.answers[1].parent, session.answers[1].given, session.rebuilt) == (None, tuple(prompt), rebuilt)
    assert scripted.contexts[1] == prompt


def test_ids_continue_what_was_asked_in_messages(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "one", "two", "three")
    first = asyncio.run(session.answer([user("a")], []))
    asked(session, [*session.ids(0), 50])
    assert session.answers[1].parent == 0
    again = asyncio.run(session.answer([user("a"), first.message, user("b")], []))
    assert again.parent == 0, "messages are compared with messages only"


def test_an_answer_ends_at_the_request_s_own_stop_tokens(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "abcd", "abcd")
    whole = asked(session, PROMPT)
    cut = asked(session, PROMPT, stop_token_ids=[whole[2], whole[3]])
    assert cut == whole[:3]
    first, second = (answered.answer for answered in session.answers)
    assert second.finish_reason == "stop"
    assert second.logprobs.tolist() == first.logprobs[:3].tolist()
    assert len(second.policy_version) == 3


def test_the_route_answers_as_vllm_does(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "one", "two")
    ((status, told),) = posted(
        session, {"model": "x", "token_ids": PROMPT, "sampling_params": {**SAMPLING, "n": 2}, "request_id": "mine"}
    )
    assert (status, told["request_id"], len(told["choices"])) == (200, "mine", 2)
    for choice, answered in zip(told["choices"], session.answers, strict=True):
        tokens = answered.answer.tokens.tolist()
        assert choice["token_ids"] == tokens
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == [f"token_id:{t}" for t in tokens]
        assert [e["logprob"] for e in choice["logprobs"]["content"]] == answered.answer.logprobs.tolist()
        assert choice["weight_versions"] == [{"version": "3", "start": 0, "end": len(tokens)}]
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": [600]}, "token_ids"),
        ({"token_ids": [2**80]}, "token_ids"),
        ({"token_ids": ["a"]}, None),
        ({"sampling_params": None}, None),
        ({"sampling_params": {"n": 17}}, "sampling_params.n"),
        ({"sampling_params": {"max_tokens": 0}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"stop": ["x"]}}, "sampling_params.stop"),
        ({"sampling_params": {"logit_bias": {"1": 5}}}, "sampling_params.logit_bias"),
        ({"sampling_params": {"structured_outputs": {"json": "{}"}}}, "sampling_params.structured_outputs"),
        ({"features": {"mm_hashes": {"image": ["x"]}}}, "features"),
        ({"stream": True}, "stream"),
    ],
)
def test_bad_requests_are_400_and_name_the_field(tokenizer: Tokenizer, fields: Any, param: str | None) -> None:
    session, scripted = session_of(tokenizer, "one", vocab_size=600)
    bodies = [{"token_ids": PROMPT, "sampling_params": SAMPLING, **fields}, b"{", b"[" * 100_000]
    (status, told), *others = posted(session, *bodies)
    assert (status, told["error"]["param"], told["error"]["type"]) == (400, param, "invalid_request_error")
    assert [status for status, _ in others] == [400, 400]
    assert scripted.contexts == []


def test_a_prompt_that_leaves_no_room_is_told_so(tokenizer: Tokenizer) -> None:
    session, _ = session_of(tokenizer, "one", max_context=4)
    ((status, told),) = posted(session, {"token_ids": PROMPT, "sampling_params": SAMPLING})
    assert (status, told["error"]["code"], told["error"]["param"]) == (400, "context_length_exceeded", "token_ids")

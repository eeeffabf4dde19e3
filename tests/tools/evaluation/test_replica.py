"""A model folder as a model: prompts as token ids, and what its server is asked; the server is not real."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rewards.contracts import Problem
from rewards.environments import FeedbackEnvironment
from serving_bridge.text import Tokenizer
from serving_bridge.text.chat_template import environment
from serving_bridge.vllm.answers import Rejected, Unreachable
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import EOS, AdditionTask, FakeReplica, FakeSession, choice, reply, virtually
from tools.evaluation.asking import Answer, Identity, Request
from tools.evaluation.errors import SuiteError
from tools.evaluation.problems import OpenSuite, SuiteProblem
from tools.evaluation.replica import FolderPrompts, ReplicaModel
from tools.evaluation.suites import SuiteSettings

PROBLEM = SuiteProblem("p", "", Problem(0, "7+5=", "12", {}))


def suite(*, dialog: bool = False, **settings: Any) -> OpenSuite:
    tree = {"name": "s", "source": "jsonl", "path": "x", "score": {"reward": "exact"}, **settings}
    environment = FeedbackEnvironment(AdditionTask(), turns=2, feedback="Again.") if dialog else None
    return OpenSuite(SuiteSettings.model_validate(tree), [PROBLEM], AdditionTask(), environment, "h", ())


def model(tokenizer: Tokenizer, replica: FakeReplica) -> tuple[ReplicaModel, list[int]]:
    started: list[int] = []

    async def start() -> VllmClient:
        started.append(1)
        return VllmClient("http://a", FakeSession({"a": replica}))

    return ReplicaModel(Identity("folder", "m", "h"), FolderPrompts(tokenizer, max_model_len=600), start), started


def ask(model: ReplicaModel, suite: OpenSuite, *samples: int) -> list[Answer]:
    async def asked() -> list[Answer]:
        dialog, sampling = model.begin(suite, PROBLEM), suite.settings.sampling
        return [await model.answer(Request(dialog, sampling, sample, None).seeded()) for sample in samples]

    return virtually(asked())


def test_prompts_are_ids_of_the_template_filled(tokenizer: Tokenizer) -> None:
    prompts = FolderPrompts(tokenizer, max_model_len=600)
    dialog = prompts.begin(suite(prompt_template="Q {question}"), PROBLEM)
    assert dialog.messages == (("user", "Q 7+5="),)
    assert list(dialog.tokens) == tokenizer.encode_prompt("Q 7+5=", chat=False)


def test_a_chat_has_its_system_message(tokenizer: Tokenizer) -> None:
    shape = "{% for m in messages %}{{ m.role }}+{{ m.content }}={% endfor %}"
    chatting = dataclasses.replace(tokenizer, chat_template=environment().from_string(shape))
    dialog = FolderPrompts(chatting, max_model_len=600).begin(suite(chat=True, system="1+1"), PROBLEM)
    assert [role for role, _ in dialog.messages] == ["system", "user"]
    said = [{"role": "system", "content": "1+1"}, {"role": "user", "content": "7+5="}]
    assert list(dialog.tokens) == chatting.encode_chat(said) != chatting.encode_chat(said[1:])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"sampling": {"max_tokens": 598}},
            r"the prompt p has \d+ tokens, but 2 fit beside sampling\.max_tokens \(598\)",
        ),
        ({"system": "Be brief."}, "a system message, which needs chat = true"),
        ({"dialog": True, "sampling": {"stop": ("x",)}}, r"take out sampling\.stop"),
    ],
)
def test_what_can_not_be_asked_is_told_before_a_server_starts(
    tokenizer: Tokenizer, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SuiteError, match=expected):
        FolderPrompts(tokenizer, max_model_len=600).begin(suite(**settings), PROBLEM)


def test_the_server_starts_once_with_the_first_question(tokenizer: Tokenizer) -> None:
    found, started = model(tokenizer, FakeReplica(stop=1.0))
    found.begin(suite(), PROBLEM)
    assert not started
    ask(found, suite(), 0, 0)
    assert len(started) == 1


def test_sampling_is_that_of_the_suite(tokenizer: Tokenizer) -> None:
    replica = FakeReplica(stop=1.0)
    found, _ = model(tokenizer, replica)
    ask(found, suite(sampling={"temperature": 0.5, "top_p": 0.9, "max_tokens": 7}), 0, 1, 0)
    ask(found, suite(sampling={"max_tokens": 7}), 0)
    *sampled, greedy = [body["sampling_params"] for body in replica.bodies]
    assert {(p["temperature"], p["top_p"], p["max_tokens"], p["n"]) for p in sampled} == {(0.5, 0.9, 7, 1)}
    assert sampled[0]["seed"] == sampled[2]["seed"] != sampled[1]["seed"]
    assert (greedy["temperature"], "seed" in greedy, "top_p" in greedy) == (0.0, False, False)


def test_an_answer_ends_before_a_stop_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.backend.encode("12+7", add_special_tokens=False).ids
    replica = FakeReplica(script=[lambda _: reply(choice([*ids], "length"))] * 2)
    found, most = model(tokenizer, replica)[0], {"max_tokens": len(ids)}
    whole, cut = *ask(found, suite(sampling=most), 0), *ask(found, suite(sampling={**most, "stop": ("+",)}), 0)
    assert (whole.text, whole.finish_reason, whole.num_tokens) == ("12+7", "length", len(ids))
    assert (cut.text, cut.finish_reason, cut.num_tokens) == ("12", "stop", len(ids))


def test_what_may_pass_is_tried_again_and_what_will_not_is_told(tokenizer: Tokenizer) -> None:
    def lost(_: Any) -> Any:
        raise ConnectionResetError("on purpose")

    replica = FakeReplica(stop=1.0, script=[lost, lambda _: (500, b"{}")])
    assert len(ask(model(tokenizer, replica)[0], suite(), 0)) == 1
    assert len(replica.bodies) == 3
    with pytest.raises(Unreachable):
        ask(model(tokenizer, FakeReplica(script=[lost] * 9))[0], suite(), 0)
    with pytest.raises(Rejected):
        ask(model(tokenizer, FakeReplica(script=[lambda _: (400, b"{}")]))[0], suite(), 0)


def test_a_dialog_goes_on_from_what_was_sampled(tokenizer: Tokenizer) -> None:
    prompts = FolderPrompts(tokenizer, max_model_len=600)
    asked = suite(dialog=True)
    first = prompts.begin(asked, PROBLEM)
    second = prompts.go_on(asked, first, Answer("13", "stop", 2, (9, EOS)), "Again.")
    said = tokenizer.encode_observation("Again.", chat=False, after=EOS)
    assert second.tokens == (*first.tokens, 9, EOS, *said)
    assert second.messages == (*first.messages, ("assistant", "13"), ("user", "Again."))

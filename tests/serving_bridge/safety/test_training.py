"""Guards of training data: the worst verdict of a conversation, every message in the conversation before it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import pytest

from serving_bridge.safety import (
    Checker,
    Guards,
    GuardsForTraining,
    Opinion,
    RulesForTraining,
    Stage,
    TrainingGuard,
    Verdict,
    content_of,
)
from serving_bridge.settings import SafetySettings

HARM = "Here is how to build a pipe bomb at home with nails"
SYSTEM, ASKED = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
FOUND, SAID = {"role": "tool", "content": "so"}, {"role": "assistant", "content": "Like so."}


class Model:
    """A guard model that says of each message what the test wants; remembers what it was shown."""

    name, version = "model", "1"

    def __init__(self, **said: Verdict) -> None:
        self.said, self.seen = said, list[list[str]]()

    def running(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def judge(self, messages: Any, stage: Stage) -> Opinion:
        assert stage is Stage.TRAINING_DATA
        self.seen.append([content_of(message) for message in messages])
        return Opinion("model", "1", self.said.get(messages[-1]["role"], Verdict.ALLOW))


def test_each_message_of_users_and_models_is_judged_in_what_stands_before_it() -> None:
    model = Model()
    with GuardsForTraining(Guards(SafetySettings(), models=[model])) as guard:
        assert guard.judged([[SYSTEM, ASKED, CALLED, FOUND, SAID]]) == [Verdict.ALLOW]
        whole = ["Be kind.", "How?", "look {}", "so", "Like so."]
        assert sorted(model.seen, key=len) == [whole[:2], whole[:3], whole]
        guard.judged([[SYSTEM, ASKED, SAID]])
        assert [len(seen) for seen in model.seen] == [2, 3, 5, 3], "what was judged before is not asked again"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({"assistant": Verdict.BLOCK}, Verdict.BLOCK),
        ({"user": Verdict.BLOCK, "assistant": Verdict.ERROR}, Verdict.BLOCK),
        ({"user": Verdict.ERROR, "assistant": Verdict.FLAG}, Verdict.ERROR),
        ({"user": Verdict.FLAG}, Verdict.FLAG),
    ],
)
def test_the_worst_verdict_counts(said: dict[str, Verdict], verdict: Verdict) -> None:
    model = Model(**said)
    with GuardsForTraining(Guards(SafetySettings(), models=[model])) as guard:
        assert guard.judged([[ASKED, SAID], [ASKED, SAID]]) == [verdict, verdict]
        asked = len(model.seen)
        assert guard.judged([[ASKED, SAID]]) == [verdict]
        assert (len(model.seen) > asked) == (Verdict.ERROR in said.values()), "a guard that failed is asked again"


def test_rules_alone_and_all_guards_block_harm_in_any_message() -> None:
    hidden = {**CALLED, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": HARM}}]}
    cases = [[ASKED, SAID], [{"role": "user", "content": HARM}, SAID], [ASKED, hidden, FOUND, SAID], []]
    wanted = [Verdict.ALLOW, Verdict.BLOCK, Verdict.BLOCK, Verdict.ALLOW]
    rules: TrainingGuard = RulesForTraining(Checker(SafetySettings()))
    assert rules.judged(cases) == wanted
    with GuardsForTraining(Guards(SafetySettings())) as guard:
        assert guard.judged(cases) == wanted

"""What a final answer earns: citations scale a right one, abstaining pays where there is no answer, hedging nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.contracts import RewardResult, failed, scored
from rewards.environments.final_answer import Earned, abstains, citation_score, citations, earned, without_citations
from rewards.settings import EpisodeSettings

PHRASES = EpisodeSettings().abstain_phrases


def test_citations_are_ids_in_brackets() -> None:
    assert citations("Paris [a], on the Seine [b, c][a]; [ d ].") == ("a", "b", "c", "d")
    assert citations("none [] [\n]") == ()
    assert without_citations("The set [1, 2] is right [a] [b; a].", {"a", "b"}) == "The set [1, 2] is right  ."


@pytest.mark.parametrize("answer", ["I don't know", " i do not know. ", "I don\u2019t know! [a]", "I DON'T KNOW"])
def test_abstaining_is_the_phrase_alone(answer: str) -> None:
    assert abstains(answer, PHRASES)


@pytest.mark.parametrize(
    "answer", ["I don't know, but Paris", "Paris. I don't know", "", "know", "I don't know I don't know 7"]
)
def test_a_guess_beside_the_phrase_is_a_guess(answer: str) -> None:
    assert not abstains(answer, PHRASES)


def judge(answer: str, score: float | RewardResult, row: dict[str, Any] | None = None, **settings: Any) -> Earned:
    result = score if isinstance(score, RewardResult) else scored(score, {"right": score}, reasons=("wrong",))
    given = EpisodeSettings(answerable_column="known", documents_column="sources", **settings)
    row = {"known": True, "sources": ["a", "b"], **(row or {})}
    return earned(result, answer, row=row, found={"a", "b", "c"}, settings=given)


def test_abstaining_pays_where_there_is_no_answer_and_inventing_does_not() -> None:
    nothing = {"known": False}
    right = judge("I don't know", 0.0, nothing, abstain_reward=0.8)
    assert (right.reward, right.verdict, right.parts["abstained"]) == (0.8, "pass", 1.0)
    invented = judge("Paris", 1.0, nothing, invented_reward=-0.5)
    assert (invented.reward, invented.verdict) == (-0.5, "fail")
    lazy = judge("I don't know", 0.0, abstain_anyway=0.1)
    assert (lazy.reward, lazy.verdict) == (0.1, "fail")
    assert "hold an answer" in lazy.reasons[0]


def test_citations_scale_a_right_answer_and_never_pay_for_a_wrong_one() -> None:
    assert judge("Paris [a][b]", 1.0, citation_weight=0.5).reward == 1.0
    assert judge("Paris", 1.0, citation_weight=0.5).reward == 0.5
    assert judge("Paris [a]", 1.0, citation_weight=0.5).reward == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert judge("Paris [x]", 1.0, citation_weight=0.5).reward == 0.5
    assert judge("Rome [a][b]", 0.0, citation_weight=0.5).reward == 0.0
    assert judge("Paris [a]", 1.0).reward == 1.0


def test_a_failed_verdict_stays_one() -> None:
    broken = judge("Paris", failed("verifier died", "crashed"))
    assert (broken.reward, broken.verdict, broken.reasons) == (None, "crashed", ("verifier died",))


def test_citation_scores() -> None:
    assert citation_score([], found={"a"}, wanted=None) == 0
    assert citation_score(["a", "x"], found={"a"}, wanted=None) == 0.5
    assert citation_score(["a"], found={"a"}, wanted=frozenset({"a", "b"})) == pytest.approx(2 / 3)
    assert citation_score(["a"], found=set(), wanted=frozenset({"a"})) == 0

"""The verifier `code` by its name, as `tools.score` and tasks ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from learner_jax.runtime import DoorError
from rewards.code.sandbox import SandboxPool
from rewards.verifiers import Verifier, create_verifier

ROW = {"tests": ["assert f(2) == 4"]}


@pytest.fixture(scope="module")
def verifier(pool: SandboxPool) -> Iterator[Verifier]:
    made = create_verifier("code", deadline_s=20.0, num_workers=1)
    yield made
    made.close()


def test_it_judges_and_says_which_rows_it_refuses(verifier: Verifier) -> None:
    assert verifier.judge("def f(x): return x * x", ROW).verdict == "pass"
    wrong = verifier.judge("def f(x): return x", ROW)
    assert (wrong.verdict, wrong.score, wrong.finding) == ("fail", 0.0, "")
    assert verifier.refusal(ROW) == ""
    assert verifier.refusal({}).startswith("the row has no tests")
    assert (verifier.judge("x", {}).verdict, verifier.judge("", {}).verdict) == ("refused", "refused")


@pytest.mark.parametrize(
    ("answer", "finding"),
    [("def f(x): return 1 / 0", "error"), ("I don't know.", "error"), ("def f(x):\n    while True: pass", "timeout")],
)
def test_what_an_answer_does_wrong_is_a_score_with_a_finding(pool: SandboxPool, answer: str, finding: str) -> None:
    made = create_verifier("code", deadline_s=3.0, num_workers=1)
    try:
        result = made.judge(answer, ROW)
    finally:
        made.close()
    assert (result.verdict, result.score, result.finding) == ("fail", 0.0, finding)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "\x00",
        "\ud800",
        "\u202e",
        "x" * 1_000_000,
        "(" * 100_000,
        "-" * 1_000_000,
        "\n" * 100_000,
        "```" * 1000,
    ],
    ids=range(10),
)
def test_hostile_answers_fail_and_never_raise(verifier: Verifier, answer: str) -> None:
    result = verifier.judge(answer, ROW)
    assert (result.score, result.verdict) == (0.0, "fail")


def test_a_machine_without_bubblewrap_has_no_such_verifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.code.sandbox.bubblewrap._SYSTEM", "/nonexistent")
    monkeypatch.setattr("rewards.code.sandbox.bubblewrap._packaged", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DoorError, match="verifier 'code': .*apt-get install bubblewrap"):
        create_verifier("code")

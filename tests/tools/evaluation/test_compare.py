"""Two results side by side, from results.json alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from tools import evaluate

Compare = Callable[..., str]


def problem(name: str, *scores: float | None, cluster: str = "", tokens: int = 10, prompt: str = "") -> dict[str, Any]:
    number = len(scores)
    return {
        "id": name,
        "cluster": cluster,
        "prompt_hash": prompt or f"hash of {name}",
        "scores": list(scores),
        "verdicts": ["error" if score is None else "pass" if score == 1 else "fail" for score in scores],
        "tokens": [tokens] * number,
        "characters": [tokens] * number,
        "finish_reasons": ["stop"] * number,
        "refused": [False] * number,
        "well_formed": [None] * number,
    }


def result(problems: list[dict[str, Any]], *, name: str = "sums", **changes: Any) -> dict[str, Any]:
    samples = len(problems[0]["scores"])
    units = {f"pass@{k}": "share" for k in (1, samples)} | {
        "mean_score": "score",
        "tokens": "tokens",
        "refused": "share",
    }
    metrics = {key: {"unit": unit, "value": 0.0, "low": 0.0, "high": 0.0} for key, unit in units.items()}
    suite = {"name": name, "hash": "h", "scorer": "exact", "sampling": {}, "samples": samples, "metrics": metrics}
    suite |= {"problems": problems, "num_problems": len(problems)} | changes
    return {
        "format": "weir-evaluation-1",
        "model": {"name": "m\x1b[31m", "kind": "folder", "hash": "0" * 32},
        "suites": [suite],
    }


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compare:
    def call(first: Any, second: Any, *more: str, status: int = 0) -> str:
        for name, tree in (("a", first), ("b", second)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["evaluate", "compare", str(tmp_path / "a"), str(tmp_path / "b"), *more])
        if not status:
            evaluate.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            evaluate.main()
        assert ended.value.code == status
        return capsys.readouterr().err

    return call


def test_flipped_problems_are_named_and_tested(compare: Compare) -> None:
    before = result([problem(f"p{i}", float(i < 10)) for i in range(20)])
    after = result([problem(f"p{i}", float(2 <= i < 17)) for i in range(20)])
    (found,) = json.loads(compare(before, after, "--json"))
    assert (found["lost"], found["gained"]) == (["p0", "p1"], [f"p{i}" for i in range(10, 17)])
    assert found["flips"] == {
        "num_lost": 2,
        "num_gained": 7,
        "p_value": pytest.approx(scipy.stats.binomtest(2, 9).pvalue),
    }
    assert (found["first"]["pass@1"], found["second"]["pass@1"]) == (0.5, 0.75)
    assert found["differences"]["pass@1"]["estimate"]["value"] == pytest.approx(0.25)
    told = compare(before, after)
    assert "flipped: 2 problems pass in A only, 7 in B only (McNemar's exact test, p = 0.180)" in told
    assert "pass in A only: p0, p1" in told
    assert "+25.0%" in told
    assert "\x1b[31m" not in told


def test_problems_are_matched_by_id_and_prompt_not_by_place(compare: Compare) -> None:
    before = result([problem("a", 1.0), problem("b", 0.0), problem("c", 0.0), problem("only before", 1.0)])
    after = result([problem("c", 0.0, prompt="other"), problem("b", 1.0), problem("a", 1.0)])
    (found,) = json.loads(compare(before, after, "--json"))
    assert (found["num_problems"], found["gained"], found["lost"]) == (2, ["b"], [])
    assert found["notes"][0].startswith(
        "2 problems have the same id and prompt in both results, of 4 in the first and 3"
    )


def test_unjudged_answers_neither_flip_nor_count(compare: Compare) -> None:
    before = result([problem("a", None), problem("b", 1.0), problem("c", 0.0)])
    after = result([problem("a", 1.0), problem("b", None), problem("c", 1.0)])
    (found,) = json.loads(compare(before, after, "--json"))
    assert (found["gained"], found["lost"], found["second"]["pass@1"]) == (["c"], [], 1.0)
    assert found["differences"]["pass@1"]["estimate"]["num_problems"] == 1


def test_several_samples_pass_by_half_and_have_pass_at_k(compare: Compare) -> None:
    before = result([problem("a", 1.0, 0.0), problem("b", 0.0, 0.0)])
    after = result([problem("a", 0.0, 0.0), problem("b", 1.0, 1.0)])
    (found,) = json.loads(compare(before, after, "--json"))
    assert (found["lost"], found["gained"]) == (["a"], ["b"])
    assert (found["first"]["pass@2"], found["second"]["pass@1"]) == (0.5, 0.5)


def test_clusters_count_as_one_piece_of_evidence(compare: Compare) -> None:
    before = result([problem(f"p{i}", 0.0, cluster=f"d{i // 4}") for i in range(16)])
    after = result([problem(f"p{i}", float(i < 8), cluster=f"d{i // 4}") for i in range(16)])
    (found,) = json.loads(compare(before, after, "--json"))
    assert found["differences"]["pass@1"]["estimate"]["num_clusters"] == 4
    assert found["differences"]["pass@1"]["p_value"] == 0.5


def test_what_was_measured_otherwise_is_noted(compare: Compare) -> None:
    told = compare(result([problem("a", 1.0)]), result([problem("a", 1.0)], scorer="math", hash="other"))
    assert "note: scorer differs: exact in the first, math in the second" in told
    assert "the suites differ in settings or references" in compare(
        result([problem("a", 1.0)]), result([problem("a", 1.0)], hash="other")
    )


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (result([problem("a", 1.0)], name="other"), "no suite in common: the first has sums, the second other"),
        (result([problem("z", 1.0)]), "no problem has the same id and prompt"),
        ("{", "is no result of an evaluation"),
        ("[]", "is no result of an evaluation"),
        ('{"model": {"name": ""}, "suites": [], "format": "x"}', "has format 'x', expected 'weir-evaluation-1'"),
    ],
)
def test_results_that_can_not_be_compared_are_one_clear_error(compare: Compare, second: Any, expected: str) -> None:
    assert expected in compare(result([problem("a", 1.0)]), second, status=78)

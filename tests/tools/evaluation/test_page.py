"""The page of a result: whole, self-contained, and with nothing of a model that a browser would run."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import Problem
from tests.support.rollout_world import AdditionTask
from tools import evaluate
from tools.evaluation.asking import Identity
from tools.evaluation.examine import Judged
from tools.evaluation.page import extremes, write_page
from tools.evaluation.problems import OpenSuite, SuiteProblem
from tools.evaluation.results import suite_result, write_results
from tools.evaluation.suites import SuiteSettings

HOSTILE = "</pre><script>alert(1)</script><img src=http://x/ onerror=alert(1)>\x1b[31m\x00{{ 7*7 }}"


def judged(problem: str, sample: int, score: float | None, answer: str = "an answer") -> Judged:
    verdict = "error" if score is None else "pass" if score == 1 else "fail"
    prompt = (("system", HOSTILE), ("user", f"prompt of {problem} {HOSTILE}"), ("assistant", answer))
    return Judged(problem, sample, prompt, answer, "stop", 7 + sample, score, verdict, (HOSTILE,), False, None, answer)


def written(folder: Path, samples: list[Judged], *, number: int, name: str = "sums", **more: Any) -> Path:
    tree = {"name": name, "source": "jsonl", "path": "x", "score": {"reward": "exact"}, "samples": 2, "ks": (1, 2)}
    settings = SuiteSettings.model_validate(tree | {"description": HOSTILE, "sampling": {"temperature": 1.0}})
    problems = [SuiteProblem(f"p{i}", "", Problem(i, f"q{i}", "", {})) for i in range(number)]
    suite = OpenSuite(settings, problems, AdditionTask(), None, "hash", ())
    folder.mkdir(exist_ok=True)
    write_results(folder, Identity("folder", HOSTILE, "0" * 32), [suite_result(suite, samples, **more)])
    return write_page(folder)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_a_page_escapes_all_that_a_model_or_suite_says(tmp_path: Path) -> None:
    samples = [judged(f"p{i}", s, [0.0, 1.0, None][i % 3], HOSTILE) for i in range(6) for s in range(2)]
    text = written(tmp_path / "r", samples, number=6).read_text()
    found = Tags()
    found.feed(text)
    assert not {"script", "img", "iframe", "link", "object"} & set(found.names)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    outside = [
        value
        for name, value in found.attributes
        if name in ("src", "href", "xlink:href") and not (value or "").startswith("#")
    ]
    assert not outside
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "{{ 7*7 }}" in text
    assert text.count("<svg") == 4


def test_a_page_shows_the_metrics_and_answers(tmp_path: Path) -> None:
    samples = [judged(f"p{i}", s, float(i > 3), f"answer {i} {s}") for i in range(8) for s in range(2)]
    contamination = {
        "ngram": 8,
        "source": "train.jsonl",
        "num_training_prompts": 9,
        "num_overlapping": 1,
        "num_identical": 0,
        "share": 0.125,
        "problems": ["p3"],
    }
    text = written(tmp_path / "r", samples, number=8, contamination=contamination).read_text()
    assert "50.0%" in text
    assert re.search(r"pass@2</td><td>50\.0%</td>", text)
    assert "1 of 8 problems (12.5%) share 8 words in a row" in text
    assert text.index("answer 0 0") < text.index("answer 7 1") < text.index("answer 1 0")


def test_the_worst_and_the_best_are_of_different_problems() -> None:
    samples = [{"problem": f"p{i}", "sample": s, "score": i / 10} for i in range(6) for s in range(3)]
    found = extremes(samples, 8)
    assert [(worst["problem"], best["problem"]) for worst, best in found if worst and best] == [
        ("p0", "p5"),
        ("p1", "p4"),
        ("p2", "p3"),
    ]
    assert extremes([{"problem": "p", "score": None}], 8) == []
    ((worst, best),) = extremes(samples[:2], 8)
    assert (worst, best) == (samples[0], None)


def test_the_command_writes_it_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r", [judged("p0", s, 1.0) for s in range(2)], number=1)
    path.unlink()
    monkeypatch.setattr(sys, "argv", ["evaluate", "report", str(tmp_path / "r")])
    evaluate.main()
    assert capsys.readouterr().out.strip() == str(path)
    assert path.exists()
    (tmp_path / "r" / "scored.jsonl").write_text("{")
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == 78
    assert "scored.jsonl is damaged" in capsys.readouterr().err


def test_a_result_without_judged_answers_has_a_page(tmp_path: Path) -> None:
    text = written(tmp_path / "r", [judged("p0", s, None) for s in range(2)], number=1).read_text()
    assert "No answer was judged." in text
    assert json.loads((tmp_path / "r" / "results.json").read_text())["suites"][0]["metrics"]["pass@1"]["value"] is None

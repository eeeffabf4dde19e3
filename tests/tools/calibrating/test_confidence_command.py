"""Answers are asked for, fitted and measured from the command line, and the gateway reads what comes out."""

from __future__ import annotations

import asyncio
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import Problem, RewardRequest, RewardResult, TaskError, scored
from serving_bridge.confidence import CalibrationError, read_calibration
from serving_bridge.text import Tokenizer
from tests.support.gateway_world import Script, World, running_gateway
from tests.support.session_world import tokenizer
from tools import confidence
from tools.calibrating import AskError, Asking, asked_answers, halves, read_known
from tools.scoring import Line

__all__ = ["tokenizer"]


def written(folder: Path, count: int = 1200) -> Path:
    """Answers whose mean log-prob m is right with probability sigmoid(3 m + 0.5)."""
    generator = random.Random(5)
    lines = []
    for number in range(count):
        mean = -generator.gammavariate(2.0, 0.4)
        right = generator.random() < 1 / (1 + math.exp(-(3 * mean + 0.5)))
        samples = ["It is twelve."] * 3 if right or number % 3 == 0 else ["perhaps four", "ten", "It is twelve."]
        lines.append(
            {
                "correct": right,
                "logprobs": [2 * mean, 0.0],
                "answer": "It is twelve.",
                "samples": samples,
                "question": f"{number // 2}",
            }
        )
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["python -m tools.confidence", *arguments])
    confidence.main()


def test_fitting_and_comparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, out = written(tmp_path), tmp_path / "calibration.json"
    run(monkeypatch, "fit", "--answers", str(answers), "--out", str(out))
    found = read_calibration(out)
    report = found.held_out
    assert report["after"]["high"] < report["before"]["low"]
    assert found.num_fitted + report["after"]["count"] == 1200
    assert 2 < found.slope < 4.5, "they were drawn with a slope of 3"
    told = capsys.readouterr().out
    assert f"| mean, platt | {report['before']['error']:.3f} (" in told
    assert "| 0.9 | " in told
    run(monkeypatch, "compare", "--answers", str(answers))
    table = capsys.readouterr().out
    assert table.count("\n| ") == 12
    assert "| agreement, isotonic |" in table


def test_answers_to_one_question_lie_in_one_half(tmp_path: Path) -> None:
    lines = [Line(number, line) for number, line in enumerate(written(tmp_path).read_bytes().splitlines(), start=1)]
    fit, held = halves(read_known(lines, name="answers"))
    assert not {answer.question for answer in fit} & {answer.question for answer in held}
    assert min(len(fit), len(held)) > 500


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{}", "correct"),
        (b'{"correct": 1}', "bool"),
        (b'{"correct": true, "logprobs": [3.0]}', "0.001"),
        (b'{"correct": true, "logprobs": [-1e999]}', "range"),
        (b"[" * 2000, "line 1"),
        (b"", "no answers"),
    ],
)
def test_what_is_no_answer_is_told(line: bytes, told: str) -> None:
    with pytest.raises(CalibrationError, match=told):
        read_known([Line(1, line)] if line else [], name="answers.jsonl")


def test_a_score_needs_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"correct": true}\n' * 40)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "fit", "--answers", str(path), "--out", str(tmp_path / "out.json"))
    assert ended.value.code == 78
    assert not (tmp_path / "out.json").exists()


class Counting:
    """A task whose held-out question N is right where the answer is twelve."""

    version = "counting"

    def problem(self, split: str, index: int) -> Problem:
        return Problem(index, f"{split} {index}", "twelve", {})

    def score(self, request: RewardRequest) -> RewardResult:
        return scored(float("twelve" in request.response), {})


@pytest.mark.parametrize("chat", [True, False])
def test_answers_are_collected_from_a_gateway(chat: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script(texts=("It is twelve.", "It is ten.", "It is twelve."), logprob=(-0.25,))

    async def play(world: World) -> list[Any]:
        asking = Asking(f"{world.url}/v1", "policy", chat, "Say: {question}", samples=2, at_a_time=1, max_tokens=64)
        return [answer async for answer in asked_answers(Counting(), asking, 2)]  # type: ignore[arg-type]

    async def run_it() -> list[Any]:
        async with running_gateway(tmp_path, tokenizer, script) as world:
            return await play(world)

    first, second = asyncio.run(run_it())
    assert (first.answer, first.correct, first.samples) == ("It is twelve.", True, ["It is ten.", "It is ten."])
    assert set(first.logprobs) == {-0.25}
    assert len(first.logprobs) == len(tokenizer.encode("It is twelve.")) + 1
    assert (second.correct, second.question) == (True, "heldout 1")


def test_too_few_problems_are_told_before_the_first_is_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Few(Counting):
        def problem(self, split: str, index: int) -> Problem:
            if index >= 10:
                raise TaskError("there are only 10")
            return super().problem(split, index)

    script = Script("It is twelve.")

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, script) as world:
            asking = Asking(f"{world.url}/v1", "policy", True, "{question}", at_a_time=2)
            with pytest.raises(TaskError, match="only 10"):
                _ = [answer async for answer in asked_answers(Few(), asking, 11)]  # type: ignore[arg-type]

    asyncio.run(play())
    assert script.asked == []


def test_a_gateway_that_refuses_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script(status=503)) as world:
            asking = Asking(f"{world.url}/v1", "policy", True, "{question}")
            with pytest.raises(AskError, match="503"):
                _ = [answer async for answer in asked_answers(Counting(), asking, 1)]  # type: ignore[arg-type]

    asyncio.run(play())


def test_a_gateway_that_answers_without_end_is_told(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.calibrating.asking._MAX_BYTES", 100)

    async def play() -> None:
        async with running_gateway(tmp_path, tokenizer, Script()) as world:
            asking = Asking(f"{world.url}/v1", "policy", True, "{question}")
            with pytest.raises(AskError, match="more than 100 bytes"):
                _ = [answer async for answer in asked_answers(Counting(), asking, 1)]  # type: ignore[arg-type]

    asyncio.run(play())

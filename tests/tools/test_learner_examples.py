"""Supervised examples from rows: rendered once as prompts are, kept, and refused with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from configs.schema import Config
from learner_jax.batches import ExampleFiles
from rewards.contracts import TaskError
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.text import Tokenizer
from tests.conftest import REPOSITORY
from tests.support.rollout_bench import tokenizer as tokenizer
from tools.learner_examples import supervised_examples

_ROWS: list[dict[str, Any]] = [
    {"question": "12+5=", "answer": "17", "rejected": "18"},
    {"question": "3+4=", "answer": 7, "rejected": "8"},
]


def examples(
    folder: Path, tokenizer: Tokenizer, rows: list[dict[str, Any]] | None = None, *overrides: str, **given: Any
) -> ExampleFiles:
    path = folder / "rows.jsonl"
    if rows is not None:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    table = {"data": str(path), "steps": 1, "batch_size": 1, "learning_rate": 1e-3, **given}
    named = ", ".join(f"{key} = {_toml(value)}" for key, value in table.items())
    config: Config = load_config(
        REPOSITORY / "configs" / "demo.toml", ["warm_start=none", f"supervised={{ {named} }}", *overrides]
    )
    assert config.supervised is not None
    template = config.task.prompt_template
    encoder = PromptEncoder(tokenizer, template=template, chat=False, max_prompt_tokens=20)
    return supervised_examples(config, config.supervised, folder / "run", encoder)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def texts(files: ExampleFiles, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(prompt, answer with its end) of each example, as text."""
    found = []
    for number in range(len(files)):
        tokens, mask = files[number]
        prompt = [t for t, m in zip(tokens, mask, strict=True) if not m]
        answer = [t for t, m in zip(tokens, mask, strict=True) if m]
        assert answer[-1] in tokenizer.eos_ids
        found.append((tokenizer.decode([int(t) for t in prompt]), tokenizer.decode([int(t) for t in answer])))
    return found


def test_rows_become_prompts_and_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = texts(examples(tmp_path, tokenizer, _ROWS), tokenizer)
    assert [answer for _, answer in found] == ["17", "7"]
    assert [prompt.strip() for prompt, _ in found] == ["12+5=", "3+4="]


def test_a_function_has_its_arguments(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def rows(first):\n    return [{'question': f'{n}=', 'answer': str(n)} for n in range(first, first + 2)]\n"
    (tmp_path / "my_sums.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = texts(examples(tmp_path, tokenizer, None, data="my_sums:rows", options={"first": 7}), tokenizer)
    assert [answer for _, answer in found] == ["7", "8"]


def test_pairs_have_the_chosen_answer_before_the_rejected_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = texts(examples(tmp_path, tokenizer, _ROWS, loss="dpo"), tokenizer)
    assert [answer for _, answer in found] == ["17", "18", "7", "8"]
    assert found[0][0] == found[1][0]


def test_what_was_rendered_is_kept_also_where_the_file_changes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = texts(examples(tmp_path, tokenizer, _ROWS), tokenizer)
    assert texts(examples(tmp_path, tokenizer, _ROWS[:1]), tokenizer) == first
    with pytest.raises(TaskError, match=r"was rendered with other settings of \[supervised\]"):
        examples(tmp_path, tokenizer, None, loss="dpo")


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([{"question": "1+1="}], {}, r"rows\.jsonl.*has no column 'answer', only 'question'; set supervised\.answer"),
        ([{"question": "1+1=", "answer": ""}], {}, r"line 1: 'answer' is '', expected text"),
        ([_ROWS[0], {**_ROWS[0], "rejected": None}], {"loss": "dpo"}, r"row 2: 'rejected' is None, expected the text"),
        ([{"question": "1+1=", "answer": "9" * 40}], {}, r"row 1: prompt and answer have \d+ tokens, expected at most"),
    ],
)
def test_a_row_that_can_not_be_used_is_named(
    rows: list[dict[str, Any]], given: dict[str, Any], message: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(TaskError, match=message):
        examples(tmp_path, tokenizer, rows, **given)
    assert not (tmp_path / "run" / "examples").exists()

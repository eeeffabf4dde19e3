"""tools.data: what it says of the data of a run, escaped, and its exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.conftest import REPOSITORY
from tests.support.user_folder import working_in
from tools import data as command


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    with working_in(tmp_path):
        yield tmp_path


def rows(path: Path, questions: list[str], **more: Any) -> str:
    path.write_text("".join(json.dumps({"question": text, "answer": "1", **more}) + "\n" for text in questions))
    return str(path)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: dict[str, Any], *more: str
) -> tuple[int, str]:
    """Exit status and output for the demo's configuration with another task."""
    import tomllib

    tree = tomllib.loads((REPOSITORY / "configs/demo.toml").read_text())
    tree["task"] = {"provider": "rows", "reward": "exact", "holdout_percent": 20, **task}
    tree["evaluation"]["num_problems"] = 8
    tree["warm_start"]["num_validation"] = 8
    tree["learner"]["num_golden"] = 2
    Path("config.toml").write_text(tomli_w.dumps(tree))
    monkeypatch.setattr(sys, "argv", ["tools.data", "--config", "config.toml", *more])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


ADDITIONS = [f"{one}+{other}=" for one in range(20) for other in range(10)]


def test_it_tells_counts_columns_lengths_and_the_prompts_as_the_model_has_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = rows(folder / "rows.jsonl", [*ADDITIONS, *ADDITIONS[:30]], level=3, tags=["a"])
    status, said = run(monkeypatch, capsys, {"data": data}, "--prompts", "2")
    assert status == 0, said
    assert f"230 rows of {data}" in said
    assert "level     230 integer" in said
    assert "tags      230 list" in said
    assert "train rows have the question of an earlier one" in said
    assert "# prompt 2" in said
    train = next(line for line in said.splitlines() if line.startswith("  train ") and "tokens" in line)
    assert len(train.split()) == 7


def test_what_would_break_a_run_has_a_status_and_names_the_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = rows(folder / "rows.jsonl", [f"{text}{'9' * 200}" for text in ADDITIONS])
    status, said = run(monkeypatch, capsys, {"data": data})
    assert status == 1
    assert "rollout.max_prompt_tokens" in said
    assert "are longer and would be skipped" in said
    status, said = run(monkeypatch, capsys, {"data": data, "question_column": "prompt"})
    assert status != 0
    assert "error: " in said
    assert "line 1 has no column 'prompt'" in said


def test_overlap_and_near_duplicates_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = rows(folder / "heldout.jsonl", ADDITIONS[:10])
    near = [text.replace("+", " + ") for text in ADDITIONS[:3]]
    data = rows(folder / "rows.jsonl", [*ADDITIONS[5:], *near])
    status, said = run(monkeypatch, capsys, {"data": data, "heldout_data": heldout}, "--json")
    found = json.loads(said[: said.rindex("}") + 1])
    left_out = found["sources"][0]["left_out"]
    assert sum(left_out.values()) == 5
    told = f"{left_out['train']} rows of train whose questions are in another split"
    assert any(told in one["got"] for one in found["findings"])
    shared = {(one["split"], one["other"]): one["number"] for one in found["near"]}
    assert shared["heldout", "train"] + shared.get(("heldout", "validation"), 0) == 3
    assert any("are nearly the same as train ones" in one["got"] for one in found["findings"])
    assert status == (1 if any(one["severity"] == "error" for one in found["findings"]) else 0)


def test_sources_are_told_apart_and_their_text_is_escaped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = rows(folder / "one.jsonl", ADDITIONS)
    other = rows(folder / "other.jsonl", [f"\u202e{text}" for text in ADDITIONS])
    task = {"sources": [{"data": one, "weight": 3}, {"data": other, "weight": 1}]}
    _, said = run(monkeypatch, capsys, task, "--prompts", "8", "--near", "0")
    assert "# source one, 75.0% of prompts" in said
    assert "# source other, 25.0% of prompts" in said
    assert "\u202e" not in said

"""A run's reward on its own: rows of several sources, and rows of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.settings import TaskSettings
from rewards.tasks import TaskJudge, create_judge
from tests.support.user_folder import working_in


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[None]:
    for name in ("words", "sums"):
        rows = [{"question": f"{name} {number}", "answer": "7"} for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [{"messages": [{"role": "user", "content": f"say {number}"}], "answer": "7"} for number in range(20)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    with working_in(tmp_path):
        yield


def judge(**task: Any) -> TaskJudge:
    settings = TaskSettings.model_validate({"provider": "rows", **task})
    return create_judge(settings, seed=0, deadline_s=5, num_workers=1)


def test_a_row_of_a_source_is_judged_by_its_reward() -> None:
    sources = [{"data": "words.jsonl", "reward": "exact"}, {"data": "sums.jsonl", "reward": "math"}]
    found = judge(sources=sources)
    scores = [found.judge("7.0", {"answer": "7", "source": name}).score for name in ("words", "sums")]
    assert scores == [0.0, 1.0]
    for row in ({"answer": "7"}, {"answer": "7", "source": "wrods"}, {"answer": "7", "source": ["words"]}):
        result = found.judge("7", row)
        assert result.verdict == "refused"
        assert "expected one of words, sums" in result.reasons[0]


def test_a_row_of_messages_is_judged() -> None:
    found = judge(data="said.jsonl", messages_column="messages", chat=True, reward="exact")
    row = {"messages": [{"role": "user", "content": "say 7"}], "answer": "7"}
    assert [found.judge(answer, row).score for answer in ("7", "8")] == [1.0, 0.0]
    assert found.judge("7", {**row, "messages": []}).verdict == "refused"

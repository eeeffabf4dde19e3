"""`python -m tools.feedback`: from a file of feedback to a dataset, and what it says of wrong lines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.recording_world import Recordings, answer
from tests.support.session_world import tokenizer
from tools.feedback import main

__all__ = ["tokenizer"]


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> Recordings:
    monkeypatch.setenv("COLUMNS", "200")
    found = Recordings(tokenizer, tmp_path, str(tmp_path / "state.db"))  # type: ignore[arg-type]
    found.clock.now_s = time.time() - 60
    return found


def said(recordings: Recordings, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main([recordings.url, *words])
    return capsys.readouterr().out


def test_from_a_file_to_a_dataset(recordings: Recordings, capsys: pytest.CaptureFixture[str]) -> None:
    session_id, response_id = answer(recordings, "one", "two")
    other = {"other_response_id": response_id, "other_choice": 1}
    lines = [
        {"kind": "thumbs", "value": "up", "response_id": response_id, "rater": "jane"},
        {"kind": "edit", "text": "\x1b[31mbetter", "response_id": response_id},
        {"kind": "comparison", "value": "this", "response_id": response_id, **other},
        {"kind": "copy", "response_id": "nobody"},
    ]  # fmt: skip
    file = recordings.folder / "F.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ("add", "--file", str(file), "--tenant", "acme")
    assert "4 pieces of feedback: 3 joined, 1 unknown" in said(recordings, capsys, *given)
    assert "4 pieces of feedback: 4 duplicate" in said(recordings, capsys, *given)
    assert "3 joined" in said(recordings, capsys)
    shown = said(recordings, capsys, "list")
    assert "\x1b[31m" not in shown
    assert "better" in shown
    out = str(recordings.folder / "sets")
    told = said(recordings, capsys, "dataset", "pairs", "--kind", "preferences", "--until", "2100-01-01", "--out", out)
    assert "train.jsonl: 2 examples" in told
    assert "datasets pairs; policy versions none" in said(recordings, capsys, "provenance", session_id)
    assert "jane" not in said(recordings, capsys, "signals", "--set-aside")
    back = said(recordings, capsys, "take-back", "--tenant", "acme", "--rater", "x")
    assert "no such rater" in back


@pytest.mark.parametrize(
    ("content", "why"),
    [(b'{"kind": "copy", "response_id": "r"}\n{}\n', "line 2"), (b"\xff\n", "line 1"), (None, "can't be read")],
    ids=["line", "bytes", "missing"],
)
def test_wrong_files(
    recordings: Recordings, content: bytes | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recordings.folder / "F.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit):
        main([recordings.url, "add", "--file", str(file), "--tenant", "acme"])
    assert why in capsys.readouterr().err
    assert recordings.feedback().listed() == []


def test_a_wrong_time(recordings: Recordings, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([recordings.url, "dataset", "a", "--kind", "supervised", "--until", "soon", "--out", "x"])
    assert "--until is 'soon'" in capsys.readouterr().err

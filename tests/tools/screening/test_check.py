"""`safety check`: a line out for each line in, in order, whatever it holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from serving_bridge.safety import AuditLog
from tools import safety

LINES = [
    b'{"text": "mail jane@example.com", "stage": "training_data"}',
    b"",
    b'{"text": "what is the capital of France?", "stage": "prompt"}',
    b"not JSON at all jane@example.com",
    b'{"text": 5}',
    b'{"text": "a", "stage": "elsewhere"}',
    b"[" * 100_000,
    b'{"text": "\\ud800 lone"}',
    b"\xff\xfe",
]


def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[dict]:
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    texts.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["safety", "check", "--file", str(texts), "--out", str(out)])
    safety.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_line_has_its_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = checked(tmp_path, monkeypatch, b"\n".join(LINES))
    verdicts = [decision["verdict"] for decision in decisions]
    assert verdicts == ["flag", "allow", "error", "error", "error", "error", "allow", "error"]
    assert decisions[0]["spans"] == [[5, 21, "EMAIL", "personal_data", "personal_data"]]
    assert decisions[0]["redacted"] == "mail <EMAIL_1>"
    assert decisions[2]["line"] == 4
    assert "jane" not in json.dumps(decisions)


def test_a_text_that_is_too_long_is_an_error_where_training_data_is_concerned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps({"text": "a" * (2 << 20), "stage": "training_data"}).encode()
    decision = checked(tmp_path, monkeypatch, line)[0]
    assert decision["verdict"] == "error"
    assert "safety.max_chars" in decision["error"]


def test_verify_proves_a_log_and_ends_with_1_where_it_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = AuditLog(tmp_path)
    log.add({"verdict": "allow"})
    log.close()
    monkeypatch.setattr(sys, "argv", ["safety", "verify", str(tmp_path)])
    safety.main()
    assert capsys.readouterr().out == "audit: 1 lines, as they were written\n"
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"allow", b"block"))
    with pytest.raises(SystemExit) as ended:
        safety.main()
    assert ended.value.code == 1

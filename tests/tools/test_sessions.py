"""`python -m tools.sessions`: what an operator sees of recorded sessions, and takes back."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, request, told
from tests.support.session_world import tokenizer
from tools.sessions import main

__all__ = ["tokenizer"]


@pytest.fixture
def place(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with two sessions, one of them with a branch and hostile text."""
    monkeypatch.setenv("COLUMNS", "200")
    recordings = Recordings(tokenizer, tmp_path, str(tmp_path / "state.db"))
    recordings.clock.now_s = time.time()

    async def record() -> None:
        recorder = recordings.recorder()
        async with recorder.running():
            for user, text in (("jane", "hi"), ("jane", "[b]\x1b[31mred"), ("joe", "hello jane.doe@example.com")):
                recording = await recorder.begin(request(ChatMessage("user", "hello"), user=user))
                assert recording is not None
                await told(recording, tokenizer, text)

    asyncio.run(record())
    assert recordings.database is not None
    recordings.database.close()
    return tmp_path / "state.db"


def said(capsys: pytest.CaptureFixture[str], place: Path, *words: str) -> str:
    main([str(place), *words])
    return capsys.readouterr().out


def test_list_show_export_and_withdraw(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "2 kept, 0 withdrawn, 0 expired, 3 answers" in said(capsys, place)
    (jane,) = json.loads(said(capsys, place, "list", "--tenant", "acme", "--user", "jane", "--json"))
    shown = said(capsys, place, "show", jane["session_id"])
    assert "tokens of version [3]" in shown
    assert "\x1b[31m" not in shown
    assert "[b]\\x1b[31mred" in shown
    out = tmp_path / "out.jsonl"
    said(capsys, place, "export", "--out", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    answers = [answer for line in lines for turn in line["turns"] for answer in turn["answers"]]
    assert sorted(answer["message"]["content"] for answer in answers) == sorted(
        ["hi", "[b]\x1b[31mred", "hello <EMAIL_1>"]
    )
    assert [answer["tokens"] is None for answer in answers if "EMAIL" in answer["message"]["content"]] == [True]
    assert out.stat().st_mode & 0o077 == 0
    assert "1 sessions are withdrawn" in said(capsys, place, "withdraw", "--tenant", "acme", "--user", "jane")
    assert "1 kept, 1 withdrawn" in said(capsys, place, "list")
    assert said(capsys, place, "export").count("\n") == 1
    assert "0 sessions were past their time" in said(capsys, place, "purge")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["withdraw"], "whose consent"),
        (["show", "nobody"], "there is no session"),
        (["list", "--user", "jane"], "name the tenant"),
    ],
    ids=["withdraw", "show", "list"],
)
def test_what_can_not_be_done(place: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(place), *words])
    assert why in capsys.readouterr().err


def test_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none.db")])
    assert "does not exist" in capsys.readouterr().err

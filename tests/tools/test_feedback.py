"""`python -m tools.feedback`: from a file of feedback to a dataset, and what it says of wrong lines."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from configs.load import load_config, save_config
from serving_bridge.database import open_database
from serving_bridge.feedback import Feedback, JudgeError, NextTurnJudge, Turnabout
from serving_bridge.recordings import Made, Request
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import load_tokenizer
from tests.support.recording_world import Recordings, answer, request, sampled, told
from tests.support.session_world import tokenizer
from tools.assembly import base_model_dir, build_online_queue, make_model, run_paths
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


def test_an_answer_is_judged_once(
    recordings: Recordings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def vote(self: NextTurnJudge, turn: Turnabout, number: int) -> str:
        if turn.answer == "one":
            raise JudgeError("away")
        asked.append(turn.answer)
        return "good"

    async def talk() -> None:
        recorder, first = recordings.recorder(), ChatMessage("user", "hello")
        async with recorder.running():
            for said_first in ("two", "one"):
                recording = await recorder.begin(request(first, conversation=said_first))
                assert recording is not None
                await told(recording, recordings.tokenizer, said_first)
                dialog = (first, ChatMessage("assistant", said_first), ChatMessage("user", "thanks"))
                recording = await recorder.begin(request(*dialog, conversation=said_first))
                assert recording is not None
                await told(recording, recordings.tokenizer, "gladly")
                recordings.clock.now_s -= 1

    asyncio.run(talk())
    monkeypatch.setattr(NextTurnJudge, "_vote", vote)
    given = ("judge", "--endpoint", "http://judge/v1", "--model", "m")
    assert "1 failed, 1 joined" in said(recordings, capsys, *given)
    assert asked == ["two"] * 3
    with pytest.raises(SystemExit):  # none that is asked now has an answer
        said(recordings, capsys, *given)
    assert asked == ["two"] * 3


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


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose learner takes online groups, with the model that it makes for itself."""
    directory = tmp_path_factory.mktemp("run")
    policy = "{objective = 'decoupled_ppo', importance = 'truncated'}"
    options = [f"run.directory={directory}", "learner.online.share=0.5", f"learner.loss.policy={policy}"]
    config = load_config("demo", [*options, "feedback.online_wait_s=0"])
    make_model(config, run_paths(config).created_model)
    save_config(config, directory / "config.toml")
    return directory


def test_scored_answers_go_to_the_learners_online_queue(demo_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(demo_run / "config.toml", [])
    paths = run_paths(config)
    text = load_tokenizer(base_model_dir(config, paths))
    recordings = Recordings(text, demo_run, paths.database)
    recordings.clock.now_s = time.time() - 60

    async def record() -> None:
        recorder = recordings.recorder()
        async with recorder.running():
            recording = await recorder.begin(Request("acme", "", "c", retention_days=30))
            assert recording is not None
            made = Made("r", "stable", "policy", config.rollout.temperature, 4)
            choices = [sampled(text, answer, index=index) for index, answer in enumerate(("12", "13"))]
            await recording.ended(made, text.encode("5+7="), choices)

    asyncio.run(record())
    for index, value in enumerate((1.0, 0.0)):
        recordings.feedback().add("acme", [Feedback(f"f{index}", f"r/{index}", "rating", value)])
    main([str(demo_run), "online", "--once"])
    assert "1 put" in capsys.readouterr().out
    queue = build_online_queue(config, paths)
    try:
        (group,) = queue.consumer.lease_groups(9, trained_version=3, max_staleness=64).groups
        assert [t.total_reward for t in group] == [1.0, 0.0]
        assert group[0].group_id == f"{config.run.name}/online/0"
        assert group[0].tokenizer == text.fingerprint
    finally:
        queue.close()
    main([str(demo_run), "online", "--once"])
    assert "no answers are ready" in capsys.readouterr().out


def test_a_learner_that_takes_no_online_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("demo", [f"run.directory={tmp_path}"])
    save_config(config, tmp_path / "config.toml")
    open_database(tmp_path / "state.db").close()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "online", "--once"])
    assert "learner.online.share is 0" in capsys.readouterr().err

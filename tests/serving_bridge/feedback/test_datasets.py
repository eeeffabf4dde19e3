"""Datasets: cut by time, read by the supervised path as they are, judged, and cleaned of what is withdrawn."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.data import open_table
from rewards.settings import ProblemSettings
from serving_bridge.feedback import DatasetError, Datasets, Feedback, cleaning, uncleaned_datasets
from serving_bridge.safety import Checker, Messages, Stage, Verdict, content_of
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, request, told
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

#: when users talked, in seconds; the cut lies between
EARLY, CUT, LATE = 2_000.0, 5_000.0, 8_000.0


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer) -> Recordings:
    """Three conversations of two turns: two before the cut, one after it; each answered twice."""
    found = Recordings(tokenizer, tmp_path)
    recorder = found.recorder()

    async def talk() -> None:
        async with recorder.running():
            for user, at_s in (("jane", EARLY), ("joe", EARLY + 1), ("late", LATE)):
                found.clock.now_s = at_s
                first = ChatMessage("user", f"hello of {user}")
                recording = await recorder.begin(request(first, user=user))
                assert recording is not None
                await told(recording, tokenizer, "one", "two", response_id=f"{user}-1")
                dialog = (first, ChatMessage("assistant", "two"), ChatMessage("user", "more"))
                recording = await recorder.begin(request(*dialog, user=user, conversation=first.key))
                assert recording is not None
                assert recording.begins == "continued"
                await told(recording, tokenizer, "better", "worse", response_id=f"{user}-2")

    asyncio.run(talk())
    store = found.feedback()
    for user, at_s in (("jane", EARLY + 10), ("joe", CUT + 10), ("late", LATE + 10)):
        found.clock.now_s = at_s
        outcomes = store.add(
            "acme",
            [
                Feedback(f"{user}-t", f"{user}-2/0", "thumbs", 1.0, rater="a"),
                Feedback(f"{user}-u", f"{user}-2/1", "thumbs", 0.0, rater="a"),
                Feedback(f"{user}-c", f"{user}-1/0", "comparison", 0.0, other=f"{user}-1/1"),
                Feedback(f"{user}-e", f"{user}-2/1", "edit", text=f"as {user} wants it"),
            ],
        )
        assert set(outcomes) == {"joined"}
    return found


def made(recordings: Recordings, name: str, kind: Any) -> dict[str, list[dict[str, Any]]]:
    recordings.datasets().make(name, kind, recordings.folder, until_s=CUT)
    return read(recordings.folder / name)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        part: [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "heldout")
    }


def test_preferences_are_cut_by_time(recordings: Recordings) -> None:
    """What lies across the cut, an early answer that was judged late, is in neither part."""
    rows = made(recordings, "pairs", "preferences")
    pairs = {part: [(row["answer"], row["rejected"], row["why"]) for row in lines] for part, lines in rows.items()}
    assert sorted(pairs["train"]) == sorted(
        [("as jane wants it", "worse", "edit"), ("two", "one", "comparison"), ("better", "worse", "rating")]
    )
    assert {why for _, _, why in pairs["heldout"]} == {"edit", "comparison", "rating"}
    assert "joe" not in json.dumps(rows)
    manifest = json.loads((recordings.folder / "pairs" / "manifest.json").read_text())
    assert manifest["left_out"] == {"across the cut": 3}
    assert [about["examples"] for about in manifest["files"].values()] == [3, 3]


def test_the_supervised_path_reads_them(recordings: Recordings) -> None:
    made(recordings, "pairs", "preferences")
    path = str(recordings.folder / "pairs" / "train.jsonl")
    reading = ProblemSettings(provider="rows", data=path, messages_column="messages")
    table = open_table(path, reading, setting="supervised.data")
    try:
        found = [table.problem(number) for number in range(len(table))]
        (edited,) = [problem for problem in found if problem.answer == "as jane wants it"]
        assert isinstance(edited.prompt, list | tuple)
        assert [message["content"] for message in edited.prompt] == ["hello of jane", "two", "more"]
        assert edited.metadata["rejected"] == "worse"
    finally:
        table.close()


def test_trajectories_are_the_sampled_ids(recordings: Recordings) -> None:
    rows = made(recordings, "samples", "trajectories")["train"]
    kept = recordings.store.read(rows[0]["session_id"])
    assert [row["rewards"][-1] for row in rows] == [1.0, 0.0]
    for row, answer in zip(rows, kept.answers[-2:], strict=True):
        mask = np.asarray(row["loss_mask"])
        assert answer.tokens is not None
        assert answer.logprobs is not None
        assert np.asarray(row["tokens"], "<i4")[mask].tobytes() == answer.tokens
        np.testing.assert_array_equal(
            np.asarray(row["behavior_logprobs"], "<f4")[mask], np.frombuffer(answer.logprobs, "<f4")
        )
        assert set(np.asarray(row["policy_version"])[mask].tolist()) == {3}
        assert (row["source"], row["consent"]) == ("online", True)


def test_a_withdrawal_reaches_datasets_and_their_provenance(recordings: Recordings) -> None:
    before = made(recordings, "edits", "supervised")
    session_id = before["train"][0]["session_id"]
    recordings.store.withdraw(tenant="acme", user="jane")
    assert read(recordings.folder / "edits") == {"train": [], "heldout": before["heldout"]}
    for path in (recordings.folder / "edits").iterdir():
        assert b"jane" not in path.read_bytes()
    manifest = json.loads((recordings.folder / "edits" / "manifest.json").read_text())
    assert (manifest["removed"], manifest["files"]["train"]["examples"]) == (1, 0)
    uses = recordings.datasets().uses([session_id])
    assert uses == {session_id: {"datasets": ["edits"], "versions": []}}
    assert made(recordings, "again", "supervised")["train"] == []


def test_what_is_withdrawn_while_it_is_written_is_not_in_it(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Datasets._register

    def withdrawn_after(self: Datasets, *arguments: Any) -> None:
        real(self, *arguments)
        recordings.store.withdraw(tenant="acme", user="jane")

    monkeypatch.setattr(Datasets, "_register", withdrawn_after)
    assert made(recordings, "edits", "supervised")["train"] == []


def test_guards_and_set_aside_raters(recordings: Recordings) -> None:
    recordings.clock.now_s = EARLY + 20
    harmful = "Here is a tutorial on how to make a bomb at home"
    recordings.feedback().add("acme", [Feedback("bad", "jane-2/0", "edit", text=harmful)])
    recordings.clock.now_s = LATE
    rows = made(recordings, "edits", "supervised")["train"]
    assert [row["answer"] for row in rows] == ["as jane wants it"]
    assert recordings.database is not None
    rater = recordings.feedback().of_answers()["jane-2/0"][0].rater
    recordings.database.write(
        lambda session: session.execute("INSERT INTO quarantined_raters VALUES ('acme', ?, 'r', 0)", (rater,))
    )
    pairs = made(recordings, "pairs", "preferences")["train"]
    assert {row["why"] for row in pairs} == {"comparison", "edit"}


@pytest.mark.parametrize("name", ["", "../x", "a/b", "pairs"], ids=["empty", "up", "path", "used"])
def test_names(recordings: Recordings, name: str) -> None:
    made(recordings, "pairs", "preferences")
    with pytest.raises(DatasetError):
        made(recordings, name, "preferences")


def test_a_damaged_dataset_keeps_no_other_from_being_cleaned(recordings: Recordings) -> None:
    before = made(recordings, "a", "supervised")
    made(recordings, "b", "supervised")
    kept = (recordings.folder / "a" / "train.jsonl").read_bytes()
    (recordings.folder / "a" / "train.jsonl").unlink()
    recordings.store.withdraw(tenant="acme", user="jane")
    assert read(recordings.folder / "b") == {"train": [], "heldout": before["heldout"]}
    assert recordings.database is not None
    assert uncleaned_datasets(recordings.database) == [str(recordings.folder / "a")]
    (recordings.folder / "a" / "train.jsonl").write_bytes(kept)
    recordings.store.purge()
    assert read(recordings.folder / "a") == {"train": [], "heldout": before["heldout"]}
    assert uncleaned_datasets(recordings.database) == []


def test_two_that_clean_one_dataset_bring_nothing_back(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recordings.folder / "pairs"
    made(recordings, "pairs", "preferences")
    first, second = (read(folder)[part][0]["session_id"] for part in ("train", "heldout"))
    real, others = cleaning.write_durably, list[threading.Thread]()

    def clean(session_id: str) -> None:
        with cleaning._alone(folder):
            cleaning._stripped(folder, {session_id})

    def late(path: Path, content: bytes) -> None:
        if not others:
            others.append(threading.Thread(target=clean, args=(second,)))
            others[0].start()
            others[0].join(0.2)  # time enough, were it not to wait
        real(path, content)

    monkeypatch.setattr(cleaning, "write_durably", late)
    clean(first)
    others[0].join()
    assert read(folder) == {"train": [], "heldout": []}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["removed"], manifest["files"]["train"]["examples"]) == (6, 0)


class ListeningGuard:
    """Allows all but conversations that say something; remembers what it judged."""

    def __init__(self, blocked: str = "", verdict: Verdict = Verdict.BLOCK) -> None:
        self.blocked, self.verdict = blocked, verdict
        self.seen: list[list[tuple[str, str]]] = []

    def judged(self, conversations: Sequence[Messages]) -> list[Verdict]:
        told = [[(m["role"], content_of(m)) for m in messages] for messages in conversations]
        self.seen += told
        return [self.verdict if self.blocked and self.blocked in str(said) else Verdict.ALLOW for said in told]


BEFORE = [("user", "hello of jane"), ("assistant", "two"), ("user", "more")]


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("supervised", {"as jane wants it"}),
        ("preferences", {"as jane wants it", "better", "worse"}),
        ("trajectories", {"better", "worse"}),
    ],
)
def test_each_answer_is_judged_in_its_conversation(recordings: Recordings, kind: Any, answers: set[str]) -> None:
    guard = ListeningGuard()
    recordings.datasets(guard).make("judged", kind, recordings.folder, until_s=CUT)
    assert {said[-1] for said in guard.seen if said[:-1] == BEFORE} == {("assistant", text) for text in answers}
    assert all(len(said) % 2 == 0 for said in guard.seen), "every conversation ends with an answer"


@pytest.mark.parametrize("verdict", [Verdict.BLOCK, Verdict.ERROR])
def test_trajectories_of_answers_that_a_guard_holds_back_are_left_out(recordings: Recordings, verdict: Verdict) -> None:
    made = recordings.datasets(ListeningGuard("worse", verdict))
    manifest = made.make("judged", "trajectories", recordings.folder, until_s=CUT)
    assert manifest["files"]["train"]["examples"] == 0
    (reason,) = set(manifest["left_out"]) - {"across the cut", "no exact samples"}
    assert reason == {Verdict.BLOCK: "blocked by a guard", Verdict.ERROR: "not judged: a guard failed"}[verdict]


def test_rules_judge_the_answers_of_trajectories(recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their lines hold token ids, whose text nobody reads."""
    judged: list[str] = []
    real = Checker.check

    def check(self: Checker, text: str, stage: Stage, *more: Any) -> Any:
        judged.append(text)
        return real(self, text, stage, *more)

    monkeypatch.setattr(Checker, "check", check)
    made(recordings, "samples", "trajectories")
    assert {"better", "worse", "hello of jane"} <= set(judged)

"""Feedback on both engines: joined once, within its window, in any order; capped, late, withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_bridge.feedback import Feedback, FeedbackStore
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, answer, request, told
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

HOUR_S = 3600.0


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer, database_url: str) -> Iterator[Recordings]:
    found = Recordings(tokenizer, tmp_path, database_url)
    yield found
    assert found.database is not None
    found.database.close()


def thumbs(response_id: str, name: str = "f1", value: float = 1.0, rater: str = "") -> Feedback:
    return Feedback(name, f"{response_id}/0", "thumbs", value, rater=rater)


def test_each_joins_once_however_often_and_whatever_order_it_comes(recordings: Recordings) -> None:
    store = recordings.feedback()
    session_id, response_id = answer(recordings)
    assert store.add("acme", [thumbs(response_id), thumbs(response_id)]) == ["joined", "duplicate"]
    assert store.add("acme", [thumbs(response_id, value=0.0)]) == ["conflict"]
    assert store.add("acme", [thumbs(response_id, "f2", 0.0)] * 9) == ["joined", *["duplicate"] * 8]
    assert store.add("others", [thumbs(response_id)]) == ["unknown"]  # another tenant learns nothing
    (found,) = store.of_answers().values()
    assert [(one.value, one.session_id, one.source) for one in found] == [
        (1.0, session_id, "explicit"),
        (0.0, session_id, "explicit"),
    ]
    assert store.counts() == {"joined": 2, "duplicate": 9, "conflict": 1, "late": 0, "unknown": 1, "capped": 0}


def test_feedback_that_comes_before_its_answer_joins_it(recordings: Recordings) -> None:
    store = recordings.feedback()
    assert store.add("acme", [thumbs("early"), Feedback("e", "early/0", "edit", text="better")]) == ["unknown"] * 2
    assert store.settle() == 0

    async def record() -> None:
        recorder = recordings.recorder()
        async with recorder.running():
            recording = await recorder.begin(request(ChatMessage("user", "hello")))
            assert recording is not None
            await told(recording, recordings.tokenizer, "hi", response_id="early")

    asyncio.run(record())
    assert store.settle() == 1
    assert store.settle() == 0
    assert [one.kind for one in store.of_answers()["early/0"]] == ["thumbs"]  # no text without known consent
    assert store.add("acme", [Feedback("e", "early/0", "edit", text="better")]) == ["joined"]


def test_late_feedback_is_kept_and_never_used(recordings: Recordings) -> None:
    store = recordings.feedback(window_s=HOUR_S)
    _, response_id = answer(recordings)
    recordings.clock.now_s += HOUR_S
    assert store.add("acme", [thumbs(response_id)]) == ["joined"]
    recordings.clock.now_s += 1
    assert store.add("acme", [thumbs(response_id, "f2"), thumbs("nobody", "f3")]) == ["late", "unknown"]
    assert len(store.of_answers()[f"{response_id}/0"]) == 1
    assert [one.outcome for one in store.listed()] == ["unknown", "late", "joined"]
    recordings.clock.now_s += HOUR_S + 1
    store.settle()  # nobody knows whether the user of an unknown answer consents
    assert [one.outcome for one in store.listed()] == ["late", "joined"]
    assert recordings.store.purge() == 0


def test_a_rater_is_capped(recordings: Recordings) -> None:
    store = recordings.feedback(per_rater_hour=3)
    _, response_id = answer(recordings)
    pieces = [thumbs(response_id, f"f{number}", rater="jane") for number in range(5)]
    assert store.add("acme", pieces) == ["joined"] * 3 + ["capped"] * 2
    assert store.add("acme", [thumbs(response_id, "g", rater="joe")]) == ["joined"]
    recordings.clock.now_s += HOUR_S + 1
    assert store.add("acme", pieces[3:]) == ["joined"] * 2


def test_texts_and_raters_are_not_kept_as_they_came(recordings: Recordings) -> None:
    store = recordings.feedback()
    _, response_id = answer(recordings)
    edit = Feedback("e", f"{response_id}/0", "edit", text="Write to jane.doe@example.com", rater="joe@example.com")
    assert store.add("acme", [edit]) == ["joined"]
    (found,) = store.listed()
    assert (found.text, "@" in str(found)) == ("Write to <EMAIL_1>", False)


def test_a_withdrawal_removes_what_was_said(recordings: Recordings) -> None:
    store = recordings.feedback()
    _, response_id = answer(recordings, user="jane")
    assert store.add("acme", [thumbs(response_id)]) == ["joined"]
    recordings.store.withdraw(tenant="acme", user="jane")
    assert store.listed() == []
    assert store.add("acme", [thumbs(response_id, "again")]) == ["unknown"]
    assert store.settle() == 0


def test_an_agents_session(recordings: Recordings) -> None:
    store: FeedbackStore = recordings.feedback()
    assert store.start("acme", "", "episode")
    assert not store.start("acme", "", "episode")
    reward = Feedback("r", "session:episode", "outcome", 0.5)
    assert store.add("acme", [reward]) == ["unknown"]
    answer(recordings, session="episode")
    _, last = answer(recordings, session="episode")
    assert store.settle() == 1
    assert [(one.kind, one.value) for one in store.of_answers()[f"{last}/0"]] == [("outcome", 0.5)]
    assert store.end("acme", "", "episode")
    assert not store.end("acme", "", "other")


def test_comparisons_need_both_answers(recordings: Recordings) -> None:
    store = recordings.feedback()
    _, response_id = answer(recordings, "one", "two")
    for other, outcome in ((f"{response_id}/1", "joined"), ("nobody/0", "unknown")):
        piece = Feedback(other, f"{response_id}/0", "comparison", 1.0, other=other)
        assert store.add("acme", [piece]) == [outcome]


def test_feedback_of_unknown_answers_holds_up_nothing(recordings: Recordings) -> None:
    """However many pieces wait for answers that never come: one behind them joins."""
    store = recordings.feedback()
    store.add("others", [thumbs("nobody", f"f{number}") for number in range(1001)])
    assert store.add("acme", [thumbs("early")]) == ["unknown"]

    async def record() -> None:
        recorder = recordings.recorder()
        async with recorder.running():
            recording = await recorder.begin(request(ChatMessage("user", "hello")))
            assert recording is not None
            await told(recording, recordings.tokenizer, "hi", response_id="early")

    asyncio.run(record())
    assert store.settle() == 1
    assert list(store.of_answers()) == ["early/0"]

"""Reactions to recorded answers on both engines: once for each request, by arm, in order, whoever is set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_bridge.feedback import Feedback, Reaction, reactions
from serving_bridge.recordings import Made
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, request, sampled
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer, database_url: str) -> Iterator[Recordings]:
    found = Recordings(tokenizer, tmp_path, database_url)
    yield found
    assert found.database is not None
    found.database.close()


def answered(recordings: Recordings, *given: tuple[str, str, int], choices: int = 1) -> None:
    """Records answers: (response id, arm, version)."""

    async def record() -> None:
        recorder = recordings.recorder()
        async with recorder.running():
            for response_id, arm, version in given:
                recording = await recorder.begin(request(ChatMessage("user", response_id)))
                assert recording is not None
                made = Made(response_id, arm, "policy", 1.0, 100)
                texts = [sampled(recordings.tokenizer, "hi", index=n, version=version) for n in range(choices)]
                await recording.ended(made, recording.prompt or (), texts)

    asyncio.run(record())


def said(recordings: Recordings, answer_id: str, kind: str, value: float | None = None, rater: str = "") -> None:
    name = f"{answer_id}-{kind}-{value}-{rater}"
    assert recordings.feedback().add("acme", [Feedback(name, answer_id, kind, value, rater=rater)]) == ["joined"]


def read(recordings: Recordings, after: int = 0, *, limit: int = 100) -> tuple[list[Reaction], int]:
    assert recordings.database is not None
    return reactions(recordings.database, after, until_s=recordings.clock() + 1, limit=limit)


def test_each_request_says_its_arm_and_what_its_user_did(recordings: Recordings) -> None:
    answered(recordings, ("a", "stable", 3), ("b", "canary", 4), ("c", "canary", 4), ("d", "stable", 3))
    said(recordings, "a/0", "thumbs", 0.0, "jane")
    said(recordings, "a/0", "thumbs", 1.0, "jane")  # her latest word
    said(recordings, "b/0", "thumbs", 0.0)
    said(recordings, "c/0", "regenerate")
    said(recordings, "d/0", "rating", 0.2, "jane")
    said(recordings, "d/0", "thumbs", 1.0, "john")  # 0.6 on average
    found, until = read(recordings)
    assert [(one.arm, one.version, one.thumbs_down, one.regenerated) for one in found] == [
        ("stable", 3, False, False),
        ("canary", 4, True, False),
        ("canary", 4, False, True),
        ("stable", 3, False, False),
    ]
    assert {one.tenant for one in found} == {"acme"}
    assert len({one.conversation for one in found}) == 4
    assert read(recordings, until) == ([], until)


def test_choices_of_a_request_are_one_reaction_wherever_a_piece_ends(recordings: Recordings) -> None:
    answered(recordings, ("a", "stable", 3), ("b", "canary", 4), choices=3)
    said(recordings, "a/0", "regenerate")
    said(recordings, "b/2", "thumbs", 0.0)
    for limit in (3, 4, 5, 6, 7):
        found, after = [], 0
        while (more := read(recordings, after, limit=limit))[0]:
            found += more[0]
            after = more[1]
        assert [(one.thumbs_down, one.regenerated) for one in found] == [(False, True), (True, False)], limit


def test_young_answers_wait_and_raters_that_are_set_aside_count_nothing(recordings: Recordings) -> None:
    answered(recordings, ("a", "stable", 3))
    recordings.clock.now_s += 100
    answered(recordings, ("b", "canary", 4))
    said(recordings, "a/0", "thumbs", 0.0, "jane")
    assert recordings.database is not None
    found, until = reactions(recordings.database, 0, until_s=recordings.clock() - 50)
    assert [(one.arm, one.thumbs_down) for one in found] == [("stable", True)]
    assert [one.arm for one in read(recordings, until)[0]] == ["canary"]
    (stored,) = recordings.feedback().listed()
    recordings.database.write(
        lambda session: session.execute(
            "INSERT INTO quarantined_raters VALUES ('acme', ?, 'a flood', 0)", (stored.rater,)
        )
    )
    assert [one.thumbs_down for one in read(recordings)[0]] == [False, False]

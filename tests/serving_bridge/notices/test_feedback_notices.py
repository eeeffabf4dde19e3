"""Messages about feedback: once for each piece that joined, without texts, bounded, and gone with a withdrawal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.feedback import FEEDBACK_NOTICES, Feedback, FeedbackStore
from serving_bridge.notices import MAX_WAITING, Messenger, put_notices
from serving_bridge.settings import FeedbackSettings
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, answer
from tests.support.session_world import tokenizer
from tests.support.webhook_receiver import SECRET, Receiver, receiver

__all__ = ["receiver", "tokenizer"]


@pytest.fixture
def recordings(tmp_path: Path, tokenizer: Tokenizer) -> Recordings:
    return Recordings(tokenizer, tmp_path)


def store(recordings: Recordings, *addresses: str) -> FeedbackStore:
    return recordings.feedback(webhooks=addresses, webhook_secret_env="KEY")


def waiting(recordings: Recordings) -> list[dict[str, Any]]:
    assert recordings.database is not None
    rows = recordings.database.read(lambda s: s.execute(f"SELECT body FROM {FEEDBACK_NOTICES} ORDER BY sequence"))
    return [json.loads(body) for (body,) in rows]


def test_what_joined_is_told_once_and_without_texts(recordings: Recordings, receiver: Receiver) -> None:
    session_id, response_id = answer(recordings)
    made = store(recordings, f"http://127.0.0.1:{receiver.server_port}/hook")
    edit = Feedback("e", f"{response_id}/0", "edit", text="a secret", rater="jane")
    early = Feedback("early", "later/0", "thumbs", 1.0)
    for _ in range(2):
        made.add("acme", [edit, early])
    (told,) = waiting(recordings)
    assert (told["event"], told["id"], told["response_id"], told["choice"]) == ("feedback.joined", "e", response_id, 0)
    assert (told["session"], told["kind"], told["source"], told["value"]) == (session_id, "edit", "explicit", None)
    assert "secret" not in json.dumps(told)
    assert "jane" not in json.dumps(told)
    assert recordings.database is not None
    messenger = Messenger(recordings.database, SECRET, table=FEEDBACK_NOTICES, keeps=False, clock=recordings.clock)
    receiver.statuses = [500]
    assert messenger.send_due() == 1
    assert made.notices() == {"waiting": 1, "given_up": 0}
    recordings.clock.now_s += 3
    assert messenger.send_due() == 1
    assert waiting(recordings) == []  # what was taken is not kept
    numbers = {headers["X-Weir-Delivery"] for headers, _ in receiver.got}
    assert (len(receiver.got), len(numbers)) == (2, 1)
    answer(recordings, conversation="other")
    assert made.settle() == 0


def test_feedback_that_waited_for_its_answer_is_told_when_it_joins(recordings: Recordings) -> None:
    made = store(recordings, "http://127.0.0.1:1/", "http://127.0.0.1:2/")
    assert made.add("acme", [Feedback("early", "session:s", "outcome", 1.0)]) == ["unknown"]
    assert waiting(recordings) == []
    answer(recordings, session="s")
    assert made.settle() == 1
    assert [told["id"] for told in waiting(recordings)] == ["early", "early"]  # to each address
    assert made.settle() == 0
    assert len(waiting(recordings)) == 2


def test_a_withdrawal_takes_what_waits(recordings: Recordings) -> None:
    _, response_id = answer(recordings, user="jane")
    store(recordings, "http://127.0.0.1:1/").add("acme", [Feedback("f", f"{response_id}/0", "thumbs", 1.0)])
    assert len(waiting(recordings)) == 1
    recordings.store.withdraw(tenant="acme", user="jane")
    assert waiting(recordings) == []


def test_no_more_wait_than_the_bound(recordings: Recordings) -> None:
    assert recordings.database is not None
    bodies = [("s", {"n": number}) for number in range(MAX_WAITING - 1)]
    fill = lambda session: put_notices(session, FEEDBACK_NOTICES, ["http://x/"], bodies, 0.0)  # noqa: E731
    assert recordings.database.write(fill) == 0
    more = lambda session: put_notices(session, FEEDBACK_NOTICES, ["http://x/"], bodies[:3], 0.0)  # noqa: E731
    assert recordings.database.write(more) == 2
    assert len(waiting(recordings)) == MAX_WAITING


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"webhooks": ("ftp://x/",), "webhook_secret_env": "K"}, "expected https://host/path"),
        ({"webhooks": ("https://u:p@x/",), "webhook_secret_env": "K"}, "without a password"),
        ({"webhooks": ("https://x/",)}, "messages are signed"),
    ],
    ids=["scheme", "password", "key"],
)
def test_addresses_that_can_not_be_told(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FeedbackSettings(**settings)


def test_a_table_is_a_plain_name(recordings: Recordings) -> None:
    assert recordings.database is not None
    with pytest.raises(ValueError, match="expected lower-case letters"):
        Messenger(recordings.database, SECRET, table="x; DROP TABLE feedback")

"""What is no feedback, field by field."""

from __future__ import annotations

import json
import re

import pytest

from learner_jax.contracts import ContractError
from serving_bridge.feedback import read_feedback

BASE = {"kind": "thumbs", "response_id": "r", "value": "up"}


def read(**fields: object) -> object:
    given = {**BASE, **fields}
    return read_feedback(json.dumps({k: v for k, v in given.items() if v != "absent"}).encode(), max_text_chars=100)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "praise"}, "kind is praise, expected one of rating"),
        ({"kind": "next_turn"}, "expected one of"),
        ({"response_id": "absent"}, "give response_id"),
        ({"session": "s"}, "give response_id"),
        ({"value": "yes"}, "expected one of up, down"),
        ({"value": 2}, "expected a number from 0 to 1"),
        ({"value": "absent"}, "expected a number"),
        ({"kind": "copy"}, "feedback of kind copy has none"),
        ({"kind": "rating", "value": "up"}, "expected a number"),
        ({"kind": "edit", "value": "absent"}, "text is for kind edit"),
        ({"kind": "edit", "value": "absent", "text": ""}, "0 characters"),
        ({"kind": "edit", "value": "absent", "text": "x" * 101}, "feedback.max_text_chars"),
        ({"kind": "edit", "value": "absent", "text": "\0"}, "U+0000"),
        ({"text": "better"}, "text is for kind edit"),
        ({"kind": "comparison", "value": "this"}, "other_response_id is for kind comparison"),
        ({"kind": "comparison", "value": "this", "other_response_id": "r"}, "other_response_id"),
        ({"other_response_id": "q"}, "other_response_id is for"),
        ({"choice": -1}, "choice is -1"),
        ({"position": -1}, "position is -1"),
        ({"at": -5}, "seconds since 1970"),
        ({"rater": "x" * 300}, "rater has 300 characters"),
        ({"id": "a\nb"}, "expected printable"),
        ({"stars": 5}, "unknown field"),
    ],
    ids=str,
)
def test_it_says_what_is_wrong(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ContractError, match=re.escape(why)):
        read(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{" * 5000, b'{"kind": 3}', b'{"kind":"thumbs","value":1e999}'])
def test_what_is_no_json_of_it(body: bytes) -> None:
    with pytest.raises(ContractError):
        read_feedback(body, max_text_chars=100)


def test_feedback_without_a_name_is_named_by_what_it_says() -> None:
    first, again, other = read(), read(), read(value="down")
    assert first == again
    assert first.feedback_id != other.feedback_id  # type: ignore[attr-defined]
    assert first.value == 1.0  # type: ignore[attr-defined]

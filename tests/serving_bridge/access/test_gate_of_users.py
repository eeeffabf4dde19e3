"""Options of users' requests at the gate: streams take them, packed answers don't."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving_bridge.access import Gate, Refused

GATE = Gate("http://127.0.0.1:8000", "c" * 64, "i" * 64)
GENERATE: dict[str, Any] = {"token_ids": [5], "sampling_params": {"max_tokens": 4}}


def status_of(body: dict[str, Any]) -> int:
    """Of the gate's refusal, 0 if the request may pass."""
    payload = msgspec.json.encode(body)
    headers = [(b"host", b"127.0.0.1:8000"), (b"authorization", b"Bearer " + b"i" * 64)]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload))]
    try:
        GATE.check_body(GATE.enter("POST", b"/inference/v1/generate", b"", headers), payload)
    except Refused as refused:
        return refused.status
    return 0


#: options of users that are taken, by requests whose answers are streams
USERS: list[dict[str, Any]] = [
    {"stop": ["a", "b"]},
    {"presence_penalty": -2},
    {"frequency_penalty": 1.5},
    {"logit_bias": {"5": -100}},
    {"logprobs": 20},
    {"structured_outputs": {"json": {"type": "object"}}},
    {"structured_outputs": {"json_object": True}},
]
USERS_NOT: list[dict[str, Any]] = [
    {"stop": [""]},
    {"stop": ["a"] * 17},
    {"presence_penalty": 3},
    {"logit_bias": {"x": 1}},
    {"logprobs": 21},
    {"logprobs": -1},
    {"structured_outputs": {"regex": "(a+)+"}},
    {"structured_outputs": {"grammar": "root ::= a"}},
    {"structured_outputs": {"json_object": False}},
]


@pytest.mark.parametrize("options", USERS)
def test_options_of_users_are_taken_for_streams(options: dict[str, Any]):
    body = GENERATE | {"stream": True, "cache_salt": "a1", "sampling_params": {"max_tokens": 1} | options}
    assert status_of(body) == 0


REFUSED: list[dict[str, Any]] = [
    {"cache_salt": ""},
    {"cache_salt": "a b"},
    {"cache_salt": "x", "packed": True},
    *({"sampling_params": {"max_tokens": 1} | more} for more in USERS_NOT),
    *({"sampling_params": {"max_tokens": 1} | more, "packed": True} for more in USERS),
]


@pytest.mark.parametrize("body", REFUSED)
def test_other_values_are_refused(body: dict[str, Any]):
    assert status_of(GENERATE | body) == 400

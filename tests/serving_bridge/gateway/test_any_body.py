"""Whatever JSON a body holds, it is read as a request or refused with a status of the client's: by property."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.requests import ChatRequest, CompletionRequest, read_chat, read_completion
from serving_bridge.text import Tokenizer
from tests.support.gateway_requests import refusal
from tests.support.session_world import ADD, tokenizer

__all__ = ["tokenizer"]

_FIELDS = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, "unknown"})
_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from(["user", "assistant", "tool", "<|im_end|>", "auto", "required", "json_object", "\0", "text"]),
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=12,
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "root"]), "content": _VALUES},
        optional={"tool_calls": _VALUES, "name": _VALUES, "tool_call_id": _VALUES},
    ),
    max_size=3,
)
_BODIES = st.fixed_dictionaries(
    {"model": st.just("policy")},
    optional={
        **{name: _VALUES for name in _FIELDS if name != "model"},
        "messages": _MESSAGES,
        "prompt": st.one_of(_TEXTS, _VALUES),
        "tools": st.one_of(st.just([ADD]), _VALUES),
        "response_format": st.one_of(st.fixed_dictionaries({"type": _TEXTS, "json_schema": _VALUES}), _VALUES),
    },
)
_GOOD = {"model": "policy", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}


def check(error: GatewayError | None) -> None:
    if error is not None:
        assert 400 <= error.status < 500
        assert set(error.fields()["error"]) == {"message", "type", "param", "code"}
        assert error.payload()


@pytest.mark.parametrize("read", [read_chat, read_completion])
@given(body=st.one_of(_BODIES, _VALUES))
def test_any_json(read: Any, tokenizer: Tokenizer, body: Any) -> None:
    check(refusal(read, tokenizer, body))


@given(field=st.sampled_from(_FIELDS), value=_VALUES)
def test_one_field_at_a_time(tokenizer: Tokenizer, field: str, value: Any) -> None:
    for read, left_out in ((read_chat, "prompt"), (read_completion, "messages")):
        good = {name: part for name, part in _GOOD.items() if name != left_out}
        assert refusal(read, tokenizer, good) is None
        check(refusal(read, tokenizer, good | {field: value}))


@given(body=st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    with pytest.raises(GatewayError) as refused:
        read_chat(body)
    assert refused.value.status == 400

"""Messages of a request: what is taken, what is refused and how, and which say the same."""

from __future__ import annotations

from typing import Any

import pytest

from serving_bridge.sessions import SessionError, read_messages, read_tools

USER = {"role": "user", "content": "hello"}


def call(arguments: Any, name: str = "add") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
    }


def key(message: dict[str, Any]) -> str:
    return read_messages([message, USER])[0].key


@pytest.mark.parametrize(
    ("messages", "param", "said"),
    [
        (None, "messages", "list"),
        ([], "messages", "1 to"),
        ({"role": "user"}, "messages", "list"),
        (["hello"], "messages[0]", "object"),
        ([{"role": "user"}], "messages[0].content", "expected text"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role", "'wizard'"),
        ([{"role": "user", "content": 7}], "messages[0].content", "int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content", "text only"),
        ([USER, {"role": "assistant", "content": "hi"}], "messages", "the last message"),
        ([{"role": "tool", "content": "x", "tool_call_id": 7}], "messages[0].tool_call_id", "256"),
        ([call([1], name="x") | {"tool_calls": "x"}, USER], "messages[0].tool_calls", "list"),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}, USER], "messages[0].tool_calls", "name"),
        ([USER] * 2001, "messages", "2000"),
    ],
)  # fmt: skip
def test_what_a_model_of_text_can_t_be_asked_is_refused_by_the_field(messages: Any, param: str, said: str) -> None:
    with pytest.raises(SessionError, match=said) as caught:
        read_messages(messages)
    assert (caught.value.param, caught.value.status) == (param, 400)


@pytest.mark.parametrize("tools", [{}, ["x"], [{"type": "function"}], [{"type": "x", "function": {"name": "a"}}]])
def test_what_is_no_tool_is_refused(tools: Any) -> None:
    with pytest.raises(SessionError):
        read_tools(tools)


def test_messages_that_say_the_same_are_the_same() -> None:
    assert key({"role": "user", "content": "hello"}) == key({"role": "user", "content": " hello\n"})
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert key({"role": "user", "content": parts}) == key({"role": "user", "content": "hello"})
    assert key({"role": "developer", "content": "x"}) == key({"role": "system", "content": "x"})
    assert key(call('{"a": 1, "b": 2}')) == key(call('{"b":2,"a":1}')) == key(call({"a": 1, "b": 2}))
    assert key(call('{"a": 1}')) != key(call('{"a": 2}'))
    assert key({"role": "user", "content": "hello"}) != key({"role": "system", "content": "hello"})


def test_a_lone_surrogate_is_a_message_like_others() -> None:
    assert read_messages([{"role": "user", "content": "\ud800"}])[0].key

"""Messages and tools of rows: taken as OpenAI's chat API has them, made plain, and refused by row and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import TaskError
from rewards.data import read_tools, with_system
from rewards.data.messages import identity_of, question_of, read_messages, read_tools_file

USER = {"role": "user", "content": "Weather in Rome?"}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_messages_are_taken_from_lists_and_from_json_text() -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER]
    assert read_messages(messages, "row 1") == tuple(messages)
    assert read_messages(json.dumps(messages), "row 1") == tuple(messages)
    nulls = [{**USER, "tool_calls": None, "name": None}]
    assert read_messages(nulls, "row 1") == (USER,), "parquet fills in what other rows have"


def test_parts_of_text_are_joined_and_line_ends_are_those_of_unix() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a\r\n"}, {"type": "input_text", "text": "b"}]}]
    assert read_messages(parts, "row 1") == ({"role": "user", "content": "a\nb"},)


def test_a_tool_call_gets_arguments_as_an_object_and_its_result_may_be_empty() -> None:
    dialog = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": ""}]
    found = read_messages(dialog, "row 1")
    assert found[1]["content"] == ""
    assert found[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert found[2] == {"role": "tool", "content": ""}
    assert question_of(found) == USER["content"]


def test_a_dialog_is_known_by_all_of_it_but_its_system_message() -> None:
    alone = read_messages([USER], "row 1")
    assert identity_of(alone) == USER["content"], "as the question of a plain row is"
    assert identity_of(with_system(alone, "Be brief.", "row 1")) == USER["content"]
    longer = read_messages([USER, {"role": "assistant", "content": "Sunny."}, USER], "row 1")
    assert identity_of(longer) != USER["content"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "row 7 is None, expected a list of messages"),
        ([], r"row 7 is \[\], expected a list of messages"),
        ("no json", "row 7 is text, and no JSON of a list of messages"),
        (["hello"], "row 7, message 1 is 'hello', expected an object with role and content"),
        ([{"role": "human", "content": "a"}], "message 1 has the role 'human', expected system, developer, user"),
        ([USER, {"role": "system", "content": "a"}], "message 2 has the role system, expected it first or not at all"),
        ([USER, {"role": "assistant", "content": "a"}], "the last message is of the role assistant, expected user or"),
        ([{"role": "user", "content": " "}], "message 1: 'content' is ' ', expected text"),
        ([{"role": "user"}], "message 1: 'content' is None, expected text"),
        ([{"role": "user", "content": "a\x00"}], r"message 1: 'content' holds a control character, U\+0000"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
         "message 1, part 1 is of the type image_url: models of text are trained here; leave such rows out"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "is of the type input_audio: models of text"),
        ([{"role": "user", "content": "a", "images": ["b.png"]}], "message 1 is of the type images: models of text"),
        ([{"role": "user", "content": [{"type": "poem"}]}], "part 1 is {'type': 'poem'}, expected text"),
        ([{"role": "user", "content": "a", "mood": "b"}], "message 1 has the key 'mood', expected content, name"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "of the role user has tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}, USER], "message 1, call 1 is {}, expected an object with"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "b"}}]}, USER],
         "call 1: arguments is text, and no JSON"),
    ],
)  # fmt: skip
def test_messages_that_can_not_be_asked_are_named(value: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        read_messages(value, "row 7")


def test_a_second_system_message_is_refused() -> None:
    messages = ({"role": "system", "content": "a"}, USER)
    with pytest.raises(TaskError, match=r"row 7 begins with a system message, and task\.system gives another"):
        with_system(messages, "b", "row 7")


def test_tools_are_checked_as_json_schemas(tmp_path: Path) -> None:
    assert read_tools([TOOL], "row 1") == (TOOL,)
    assert read_tools(json.dumps([TOOL]), "row 1") == (TOOL,)
    assert read_tools(None, "row 1") == read_tools([], "row 1") == ()
    (tmp_path / "tools.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([TOOL]).encode())
    assert read_tools_file(str(tmp_path / "tools.json")) == (TOOL,)
    filled = {"type": "function", "function": {**TOOL["function"], "strict": None}}  # type: ignore[dict-item]
    assert read_tools([filled], "row 1") == (TOOL,)


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", **function}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "row 7 is 3, expected a list of tools"),
        ("[", "row 7 is text, and no JSON of a list of tools"),
        (["weather"], "row 7, tool 1 is 'weather', expected"),
        ([{"name": "weather"}], 'tool 1 is .*, expected {"type": "function"'),
        ([tool(name="a b")], "tool 1 has the name 'a b', expected letters"),
        ([tool(parameters=[])], r"tool 1 \(a\): parameters are \[\], expected a JSON schema of an object"),
        ([tool(parameters={"type": "string"})], "expected a JSON schema of an object"),
        ([tool(parameters={"$schema": 3})], r"are no JSON schema: \$schema is 3"),
        ([tool(parameters={"type": "object", "properties": {"x": {"type": "text"}}})], "are no JSON schema: 'text'"),
        ([tool(), tool()], "row 7 defines the tool 'a' twice"),
    ],
)
def test_what_is_no_tool_is_named(value: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        read_tools(value, "row 7")


def test_a_file_of_tools_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task\.tools '.*none' can't be read: No such file"):
        read_tools_file(str(tmp_path / "none"))
    (tmp_path / "odd.json").write_bytes(b"\xff[]")
    with pytest.raises(TaskError, match="is not UTF-8 at byte 0"):
        read_tools_file(str(tmp_path / "odd.json"))

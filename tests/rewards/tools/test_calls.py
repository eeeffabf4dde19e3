"""Calls in answers, in the forms of several families; whatever else is written is a call that says what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.tools import BadCall, Call, parse_calls
from tests.support.properties import examples

ADD = ("add", {"a": 1, "b": 2})
GET = ("get", {})


def hermes(*calls: tuple[str, dict[str, int]]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls
    )


RIGHT = [
    (hermes(ADD), "", [ADD]),
    ("I will add. " + hermes(ADD, GET) + " Done.", "I will add. \n Done.", [ADD, GET]),
    ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>', "", [ADD]),
    ('<tool_call>{"name": "get"}</tool_call>', "", [GET]),
    ('<tool_call>{"name": "get", "arguments": {}}', "", [GET]),
    ('{"name": "add", "parameters": {"a": 1, "b": 2}}', "", [ADD]),
    ('<|python_tag|>{"name": "add", "arguments": {"a": 1, "b": 2}}', "", [ADD]),
    ('{"name": "get", "parameters": {}}; {"name": "add", "parameters": {"a": 1, "b": 2}}', "", [GET, ADD]),
    ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]', "", [ADD]),
    ('Adding.[TOOL_CALLS] [{"name": "get", "arguments": {}}, {"name": "get", "arguments": {}}]', "Adding.", [GET, GET]),
    ('[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}[TOOL_CALLS]get[ARGS]{}', "", [ADD, GET]),
]


@pytest.mark.parametrize(("text", "content", "calls"), RIGHT)
def test_calls_are_read_in_the_form_of_the_model(
    text: str, content: str, calls: list[tuple[str, dict[str, int]]]
) -> None:
    parsed = parse_calls(text)
    assert parsed.content == content
    assert parsed.calls == tuple(Call(name, arguments, f"call{i:05d}") for i, (name, arguments) in enumerate(calls))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<tool_call>add(1, 2)</tool_call>", "it is no JSON"),
        ("<tool_call>", "no </tool_call> ends it"),
        ("<tool_call>[1]</tool_call>", "it is no JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'it has no "name"'),
        ('<tool_call>{"name": 3}</tool_call>', 'it has no "name"'),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', 'its "arguments" are no object'),
        ('<tool_call>{"name": "add", "arguments": "1,"}</tool_call>', 'its "arguments" are text that is no JSON'),
        ("<tool_call>" + "[" * 50_000 + "</tool_call>", "it is no JSON"),
        ("<tool_call>" + "x" * 200_000 + "</tool_call>", "it has 200000 characters"),
        ("[TOOL_CALLS] add", "it is no JSON"),
        ("[TOOL_CALLS] 3", "it is no JSON object"),
        ('{"name": "add", "parameters": {"a": }}', "it is no JSON"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text: str, said: str) -> None:
    (call,) = parse_calls(text).calls
    assert isinstance(call, BadCall)
    assert said in call.problem


@pytest.mark.parametrize("text", ["", "The answer is 3.", '{"a": 1}', "{name: add}", "tool_call", '{"name": "Ann"}'])
def test_an_answer_without_calls_is_left_alone(text: str) -> None:
    assert (parse_calls(text).content, parse_calls(text).calls) == (text, ())


def test_ids_of_calls_go_on_through_an_episode() -> None:
    assert [call.call_id for call in parse_calls(hermes(ADD, GET), first=7).calls] == ["call00007", "call00008"]


def test_a_set_form_reads_no_other() -> None:
    assert parse_calls(hermes(ADD), "mistral").calls == ()
    assert parse_calls(hermes(ADD), "llama").calls == ()
    assert parse_calls(RIGHT[5][0], "hermes").calls == ()


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    '{"name": "a"',
    '"arguments": {}',
    "}",
    "{",
    ";",
    ",",
]


@examples(1)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    for form in ("auto", "hermes", "llama", "mistral"):
        for call in parse_calls(text, form).calls:  # type: ignore[arg-type]
            assert isinstance(call, BadCall) or call.name


def xml(name: str, **values: str) -> str:
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


SCHEMAS = {
    "put": {
        "properties": {"text": {"type": "string"}, "count": {"type": "integer"}, "any": {}, "one": {"type": ["string"]}}
    }
}


def test_bare_values_are_typed_by_the_tool_s_schema() -> None:
    text = "Putting. " + xml("put", text="5\n\n <b>x</b>", count="5", any='{"a": [1]}', one="7", other="plain")
    parsed = parse_calls(text, schemas=SCHEMAS)
    (call,) = parsed.calls
    assert isinstance(call, Call)
    assert (parsed.content, call.name) == ("Putting.", "put")
    assert call.arguments == {"text": "5\n\n <b>x</b>", "count": 5, "any": {"a": [1]}, "one": "7", "other": "plain"}
    assert parse_calls(text, "hermes", schemas=SCHEMAS).calls == parsed.calls


def test_several_calls_and_calls_without_marks() -> None:
    text = xml("get") + "\n" + xml("add", a="1", b="2")
    names = [(call.name, call.arguments) for call in parse_calls(text).calls if isinstance(call, Call)]
    assert names == [GET, ADD]
    bare = text.replace("<tool_call>", "").replace("</tool_call>", "")
    assert parse_calls(bare, "qwen3_coder").calls == parse_calls(text).calls == parse_calls(text, "qwen3_coder").calls
    assert parse_calls(bare).calls == (), "prose may speak of functions"
    assert parse_calls(text, "qwen3_coder").content == ""


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<function=>", "names no function"),
        ("<function=add>", "no </function> ends it"),
        ("<function=add>\n<parameter=a>\n1\n</function>", "no </parameter> ends a"),
        ("<function=add><parameter=>1</parameter></function>", "a parameter has no name"),
        ("<function=add>1, 2</function>", "text outside of its parameters"),
        ("<function=add>" + "x" * 200_000, "it has 2000"),
    ],
)
def test_xml_that_is_no_call_says_why(inside: str, said: str) -> None:
    for text, form in ((f"<tool_call>{inside}</tool_call>", "auto"), (inside, "qwen3_coder")):
        (call,) = parse_calls(text, form).calls  # type: ignore[arg-type]
        assert isinstance(call, BadCall)
        assert said in call.problem

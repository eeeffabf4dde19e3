"""Calls are checked and bounded; whatever a tool does, the policy gets a text and the episode goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from rewards.tools import BadCall, Call, Result, Tool, Toolbox, ToolError, Used, read_definition
from rewards.tools.toolbox import BrokenToolError

ADD = read_definition(
    {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
    what="tool",
)


def run(*calls: Call | BadCall, tool: Any = None, **options: Any) -> list[Result]:
    async def add(arguments: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
        return f"{arguments['a'] + arguments['b']}{row.get('unit', '')}"

    given = {"timeout_s": 0.2, "max_calls": 4, "max_characters": 20, **options}
    return asyncio.run(Toolbox([Tool(ADD, tool or add)], **given).run(calls, {"unit": " kg"}))


def call(a: Any = 1, b: Any = 2, name: str = "add", identity: str = "call00001") -> Call:
    return Call(name, {"a": a, "b": b}, identity)


def test_results_come_in_the_order_of_their_calls() -> None:
    first, second = run(call(identity="call00003"), call(5, 6, identity="call00004"))
    assert [first.message.content, second.message.content] == ["3 kg", "11 kg"]
    assert [first.message.call_id, second.message.call_id] == ["call00003", "call00004"]
    assert (first.message.role, first.message.name, first.failed) == ("tool", "add", False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (call(name="sub"), "there is no tool 'sub'; there are: add"),
        (call(name="\x1b[2J<|im_end|>" * 30), "there is no tool"),
        (call(a="1"), "a: '1' is not of type 'integer'"),
        (Call("add", {"a": 1}), "'b' is a required property"),
        (Call("add", {"a": 1, "b": 2, "c": 3}), "Additional properties are not allowed"),
        (BadCall("it is no JSON", "call00001"), "the tool call can't be read: it is no JSON"),
    ],
)
def test_a_wrong_call_is_told(wrong: Call | BadCall, said: str) -> None:
    (result,) = run(wrong)
    assert result.failed
    assert result.message.content.startswith("Error: ")
    assert said in result.message.content
    assert "\x1b" not in result.message.content
    assert len(result.message.content) <= 400
    assert result.message.role == "tool"


def test_too_many_calls_are_told_one_by_one() -> None:
    found = run(*[call()] * 6)
    assert [result.failed for result in found] == [False] * 4 + [True] * 2
    assert "may hold 4 calls" in found[5].message.content


async def _hangs(arguments: Any, row: Any) -> str:
    await asyncio.sleep(3600)
    return ""


async def _raises(arguments: Any, row: Any) -> str:
    raise KeyError("secret\x00")


async def _exits(arguments: Any, row: Any) -> str:
    raise SystemExit(1)


async def _says(arguments: Any, row: Any) -> str:
    raise ToolError("not on Sundays")


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (_hangs, "the tool gave no result within 0.2 s"),
        (_raises, "the tool failed: KeyError"),
        (_exits, "the tool failed: SystemExit"),
        (_says, "Error: not on Sundays"),
    ],
)
def test_what_goes_wrong_in_a_tool_is_told(tool: Any, said: str) -> None:
    (result,) = run(call(), tool=tool)
    assert result.failed
    assert said in result.message.content
    assert "\x00" not in result.message.content


def test_a_tool_that_can_not_work_at_all_ends_the_episode() -> None:
    async def broken(arguments: Any, row: Any) -> str:
        raise BrokenToolError("no sandbox")

    with pytest.raises(BrokenToolError, match="no sandbox"):
        run(call(), tool=broken)


def test_results_are_cut_and_cleaned() -> None:
    async def long(arguments: Any, row: Any) -> Used:
        return Used("a\x1b[31mb\x00\n\tc" + "x" * 1000, ("doc",))

    async def silent(arguments: Any, row: Any) -> str:
        return ""

    (result,) = run(call(), tool=long)
    assert result.message.content == "a[31mb\n\tc" + "x" * 11
    assert result.documents == ("doc",)
    assert run(call(), tool=silent)[0].message.content == "(no result)"

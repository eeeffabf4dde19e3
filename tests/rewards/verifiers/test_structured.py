"""Verifiers of structured answers: instructions, JSON schemas, tool calls, reasoning-gym."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.verifiers import Verifier, create_verifier

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "arguments": {"city": "Paris", "days": 3}}
TIME = {"name": "time", "arguments": {}}


@pytest.fixture(scope="module")
def schemas() -> Iterator[Verifier]:
    verifier = create_verifier("json_schema", deadline_s=5)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def puzzles() -> Iterator[Verifier]:
    verifier = create_verifier("reasoning_gym", deadline_s=10)
    yield verifier
    verifier.close()


def test_instructions_give_shares_and_all_decide() -> None:
    row = {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
        "prompt": "ignored",
    }
    verifier = create_verifier("instructions")
    assert verifier.judge('"Yes."', row).score == 1
    half = verifier.judge("Yes.", row)
    assert (half.score, half.parts["strict"], half.reasons) == (0, 0.5, ("not followed: startend:quotation",))
    loose = verifier.judge('Sure:\n"Yes."', {**row, "mode": "loose"})
    assert (loose.score, loose.parts["strict"], loose.parts["loose"]) == (1, 0.5, 1)
    assert verifier.judge("x", {"instruction_id_list": ["no:such"]}).verdict == "refused"
    assert verifier.judge("x", {**row, "mode": "lax"}).verdict == "refused"


@pytest.mark.parametrize(
    ("answer", "score", "reason"),
    [
        ('{"name": "ann", "age": 3}', 1, ""),
        ('Here you are:\n```json\n{"name": "ann"}\n```\nDone.', 1, ""),
        ('{"name": "Ann"}', 0, "does not match"),
        ('{"age": 3}', 0, "required"),
        ('{"name": "ann", "x": 1}', 0, "Additional"),
        ('{"name": "ann", "age": true}', 0, "integer"),
        ('{"name": "ann", "age": NaN}', 0, "no JSON"),
        ('{"name": "ann", "name": "bob"}', 0, "twice"),
        ('Here: {"name": "ann"}', 0, "no JSON"),
        ("[" * 100_000, 0, "no JSON"),
        ("", 0, "no JSON"),
        ('{"name": "\\ud800"}', 0, "does not match"),
    ],
)
def test_json_schema(schemas: Verifier, answer: str, score: float, reason: str) -> None:
    result = schemas.judge(answer, {"schema": SCHEMA})
    assert result.score == score, result
    assert reason in " ".join(result.reasons)


def test_a_schema_may_be_text_and_an_expected_value_may_stand_beside_it(schemas: Verifier) -> None:
    row = {"json_schema": json.dumps(SCHEMA), "answer": {"name": "ann"}}
    assert schemas.judge('{"name": "ann"}', row).score == 1
    assert schemas.judge('{"name": "bob"}', row).score == 0
    assert schemas.judge('{"name": "ann"}', {**row, "answer": '{"name": "ann"}'}).score == 1


@pytest.mark.parametrize("schema", [None, 7, "{", "[]", {"type": "nothing"}, {"properties": 3}])
def test_a_schema_that_is_none_refuses_the_row(schemas: Verifier, schema: Any) -> None:
    assert schemas.judge("{}", {"schema": schema}).verdict == "refused"


def test_a_schema_reads_nothing_from_elsewhere(schemas: Verifier) -> None:
    result = schemas.judge("{}", {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}})
    assert (result.score, result.verdict) == (None, "refused")


def test_a_schema_that_takes_for_ever_is_a_timeout() -> None:
    verifier = create_verifier("json_schema", deadline_s=1.0)
    result = verifier.judge(json.dumps("a" * 60 + "!"), {"schema": {"type": "string", "pattern": "^(a|a)*$"}})
    assert (result.score, result.verdict) == (None, "timeout")
    verifier.close()


def hermes(*calls: dict[str, Any]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


CODER = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        (hermes(WEATHER), WEATHER, 1),
        (hermes(WEATHER), [WEATHER], 1),
        (hermes(WEATHER), json.dumps([WEATHER]), 1),
        (
            hermes(WEATHER),
            {"type": "function", "function": {**WEATHER, "arguments": json.dumps(WEATHER["arguments"])}},
            1,
        ),
        ("<think>" + hermes(TIME) + "</think>Let me look.\n" + hermes(WEATHER), WEATHER, 1),
        (CODER, WEATHER, 1),
        (CODER.replace("3", "4"), WEATHER, 0),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris", "days": 3}}]', WEATHER, 1),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris", "days": 3}}', WEATHER, 1),
        (json.dumps(WEATHER), WEATHER, 1),
        (f"```json\n{json.dumps([WEATHER])}\n```", WEATHER, 1),
        (hermes({**WEATHER, "arguments": {"days": 3.0, "city": "Paris"}}), WEATHER, 1),
        (hermes({**WEATHER, "arguments": {"city": "Paris", "days": "3"}}), WEATHER, 0),
        (hermes({**WEATHER, "arguments": {"city": "Paris", "days": 3, "x": 1}}), WEATHER, 0),
        (hermes({**WEATHER, "arguments": {"city": "Paris"}}), WEATHER, 0),
        (hermes({**WEATHER, "name": "wether"}), WEATHER, 0),
        (hermes(WEATHER, WEATHER), WEATHER, 0),
        (hermes(WEATHER, TIME), [WEATHER, TIME], 1),
        (hermes(TIME, WEATHER), [WEATHER, TIME], 0),
        ("No call is needed.", [], 1),
        (hermes(TIME), [], 0),
        ("No call is needed.", WEATHER, 0),
        ("I would call weather with city=Paris and days=3.", WEATHER, 0),
        (hermes({**WEATHER, "arguments": {"city": "Paris", "days": True}}), WEATHER, 0),
    ],
)
def test_tool_calls(answer: str, expected: Any, score: float) -> None:
    result = create_verifier("tool_call").judge(answer, {"tool_calls": expected})
    assert result.score == score, result


def test_order_does_not_matter_where_the_row_says_so_and_parts_are_shares() -> None:
    verifier = create_verifier("tool_call")
    row = {"tool_calls": [WEATHER, TIME], "order_free": True}
    assert verifier.judge(hermes(TIME, WEATHER), row).score == 1
    half = verifier.judge(hermes(TIME, {**WEATHER, "arguments": {}}), row)
    assert (half.score, half.parts) == (0, {"parsed": 1, "names": 1, "calls": 0.5})
    assert verifier.judge(hermes(TIME, TIME), row).score == 0


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>{",
        "<tool_call>{}</tool_call>",
        "</tool_call>",
        "<tool_call>\n7\n</tool_call>",
        '<tool_call>{"name": 1}</tool_call>',
    ]
    + ["<tool_call><function=x></tool_call>", "[TOOL_CALLS]nothing", "<tool_call>" * 50_000, "<|python_tag|>weather()"],
)
def test_malformed_calls_are_unparseable_and_wrong(answer: str) -> None:
    result = create_verifier("tool_call").judge(answer, {"tool_calls": [TIME]})
    assert (result.score, result.finding) == (0, "unparseable")


@pytest.mark.parametrize("expected", [None, "weather", [7], {"arguments": {}}, {"name": "x", "arguments": [1]}])
def test_expected_calls_that_are_not_understood_refuse_the_row(expected: Any) -> None:
    assert create_verifier("tool_call").judge("x", {"tool_calls": expected}).verdict == "refused"


@pytest.mark.parametrize(
    "name", ["chain_sum", "countdown", "gcd", "spell_backward", "number_sorting", "letter_counting"]
)
def test_reasoning_gym_scores_rows_of_any_dataset(puzzles: Verifier, shared_data: Path, name: str) -> None:
    lines = (shared_data / "reasoning_gym" / f"{name}.jsonl").read_text().splitlines()[:2]
    for row in map(json.loads, lines):
        assert puzzles.judge(row["answer"], row).score == 1, row
        assert (puzzles.judge("__import__('os').system('true')", row).score or 0) < 1
        assert puzzles.judge(row["answer"], {"dataset": name, "entry": row}).score == 1


@pytest.mark.parametrize(
    "row", [{}, {"answer": "4", "metadata": {}}, {"answer": "4", "metadata": {"source_dataset": "chain_sums"}}]
)
def test_rows_of_no_dataset_are_refused(puzzles: Verifier, row: dict[str, Any]) -> None:
    assert puzzles.judge("4", row).verdict == "refused"

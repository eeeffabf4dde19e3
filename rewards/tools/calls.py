"""Tool calls in an answer: Hermes and Qwen, Qwen3-Coder, Llama, Mistral. What is malformed says why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from rewards.tools.xml_calls import XmlCallError, read_xml_call, split_xml_calls

CallFormat = Literal["auto", "hermes", "qwen3_coder", "llama", "mistral"]
CALL_FORMATS: tuple[str, ...] = get_args(CallFormat)
#: of one call; longer ones are not read
_MAX_CHARACTERS = 100_000
_HERMES = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_PYTHON_TAG = "<|python_tag|>"
#: the schemas of no tool
NO_SCHEMAS: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
_EXAMPLE = '{"name": "tool", "arguments": {"argument": "value"}}'


@dataclass(frozen=True)
class Call:
    """A call that could be read.

    Attributes:
      call_id: nine letters and digits, which every chat template takes.
    """

    name: str
    arguments: Mapping[str, Any]
    call_id: str = ""


@dataclass(frozen=True)
class BadCall:
    """What was meant as a call, and why it is none."""

    problem: str
    call_id: str = ""


@dataclass(frozen=True)
class Parsed:
    """An answer taken apart.

    Attributes:
      content: the text around the calls.
      calls: in order.
    """

    content: str
    calls: tuple[Call | BadCall, ...] = field(default=())


def parse_calls(
    text: str, form: CallFormat = "auto", *, first: int = 0, schemas: Mapping[str, Mapping[str, Any]] = NO_SCHEMAS
) -> Parsed:
    """Takes an answer apart; it never raises, whatever the text is.

    Args:
      text: with special tokens, where the model's calls are marked by them.
      form: "auto" goes by the marks in the text.
      first: number of the first call in the episode, for the ids.
      schemas: of each tool's arguments by its name; forms that write bare values need them to tell texts from numbers.
    """
    chosen = _form_of(text) if form == "auto" else form
    match chosen:
        case "hermes":
            content, found = _HERMES.sub("", text), [_of_piece(*piece, schemas) for piece in _hermes_pieces(text)]
        case "qwen3_coder":
            content, pieces = split_xml_calls(text)
            found = [_of_xml(piece, schemas) for piece in pieces]
        case "mistral":
            content, found = _mistral(text)
        case "llama":
            content, found = _llama(text)
        case _:
            content, found = text, []
    calls = (_named(call, first + number) for number, call in enumerate(found))
    return Parsed(content.strip(), tuple(calls))


def _named(call: Call | BadCall, number: int) -> Call | BadCall:
    identity = f"call{number % 100_000:05d}"
    return Call(call.name, call.arguments, identity) if isinstance(call, Call) else BadCall(call.problem, identity)


def _form_of(text: str) -> str:
    if "<tool_call>" in text:
        return "hermes"
    if _MISTRAL in text:
        return "mistral"
    return "llama" if _is_llama(text) else ""


def _hermes_pieces(text: str) -> Iterator[tuple[str, str]]:
    for found in _HERMES.finditer(text):
        yield found.group(1), "" if found.group(2) else "no </tool_call> ends it; "


def _of_piece(text: str, complaint: str, schemas: Mapping[str, Mapping[str, Any]]) -> Call | BadCall:
    """What stands between the marks: JSON, or the form of Qwen3-Coder."""
    return _of_xml(text, schemas) if text.lstrip().startswith("<function=") else _of_json(text, complaint)


def _of_xml(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> Call | BadCall:
    if len(text) > _MAX_CHARACTERS:
        return BadCall(f"it has {len(text)} characters, at most {_MAX_CHARACTERS} are read")
    try:
        return Call(*read_xml_call(text, schemas))
    except XmlCallError as error:
        return BadCall(str(error))


def _of_json(text: str, complaint: str = "") -> Call | BadCall:
    if len(text) > _MAX_CHARACTERS:
        return BadCall(f"it has {len(text)} characters, at most {_MAX_CHARACTERS} are read")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadCall(f"{complaint}it is no JSON ({error}); expected {_EXAMPLE}")
    return _of_value(value)


def _of_value(value: Any) -> Call | BadCall:
    if not isinstance(value, dict):
        return BadCall(f"it is no JSON object; expected {_EXAMPLE}")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return BadCall(f'it has no "name"; expected {_EXAMPLE}')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return BadCall(f'its "arguments" are text that is no JSON; expected {_EXAMPLE}')
    if not isinstance(arguments, dict):
        return BadCall(f'its "arguments" are no object; expected {_EXAMPLE}')
    return Call(name, arguments)


def _mistral(text: str) -> tuple[str, list[Call | BadCall]]:
    """`[TOOL_CALLS] [{...}, {...}]`, and the newer `[TOOL_CALLS]name[ARGS]{...}` once for each call."""
    content, *pieces = text.split(_MISTRAL)
    found: list[Call | BadCall] = []
    for piece in pieces:
        name, marked, arguments = piece.partition("[ARGS]")
        if marked:
            found.append(_of_json(json.dumps({"name": name.strip(), "arguments": arguments})))
            continue
        try:
            values = json.loads(piece) if len(piece) <= _MAX_CHARACTERS else None
        except (ValueError, RecursionError) as error:
            found.append(BadCall(f"it is no JSON ({error}); expected [{_EXAMPLE}]"))
            continue
        found += [_of_value(value) for value in (values if isinstance(values, list) else [values])]
    return content, found


def _is_llama(text: str) -> bool:
    text = text.strip()
    if text.startswith(_PYTHON_TAG):
        return True
    if not text.startswith("{") or not re.search(r'"name"\s*:', text[:_MAX_CHARACTERS]):
        return False
    return re.search(r'"(parameters|arguments)"\s*:', text[:_MAX_CHARACTERS]) is not None


def _llama(text: str) -> tuple[str, list[Call | BadCall]]:
    """One JSON object, or several with semicolons between them, perhaps after `<|python_tag|>`."""
    text = text.strip().removeprefix(_PYTHON_TAG).strip()
    if not text.startswith("{"):
        return text, []
    if len(text) > _MAX_CHARACTERS:
        return "", [_of_json(text)]
    found: list[Call | BadCall] = []
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            return "", [*found, BadCall(f"it is no JSON ({error}); expected {_EXAMPLE}")]
        found.append(_of_value(value))
        rest = text[place:].lstrip()
        if not rest.startswith(";"):
            return rest, found
        place = len(text) - len(rest[1:].lstrip())
    return "", found

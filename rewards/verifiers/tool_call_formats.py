"""Tool calls in the formats in which models write them: Hermes and Qwen, Qwen3-Coder, Llama 3, Mistral, plain JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learner_jax.runtime import WeirError

_MAX_CHARACTERS = 1_000_000
_MAX_CALLS = 100
_THINKING = re.compile(r"\A\s*(?:<think>)?.*?</think>", re.S)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CODER = re.compile(r"\s*<function=([^<>\s]{1,200})>(.*)</function>\s*", re.S)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]{1,200})>\n?(.*?)\n?</parameter>\s*", re.S)
_MISTRAL, _LLAMA = "[TOOL_CALLS]", "<|python_tag|>"
_FENCED = re.compile(r"```(?:json|tool_call)?[ \t]*\n(.*?)\n[ \t]*```", re.S)
_NAMES = ("arguments", "parameters")


class MalformedError(WeirError, ValueError):
    """An answer begins a call that is not one."""


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
      is_text: the format has no types: every argument is text.
    """

    name: str
    arguments: Mapping[str, Any]
    is_text: bool = False


def read_calls(answer: str) -> list[Call]:
    """The calls of an answer, in order; none if it makes none. What it thinks before is left out.

    Raises:
      MalformedError: it begins a call that can't be read.
    """
    if len(answer) > _MAX_CHARACTERS:
        raise MalformedError(f"the answer has {len(answer)} characters, at most {_MAX_CHARACTERS} are read")
    text = _THINKING.sub("", answer, count=1) if "</think>" in answer else answer
    if _OPEN in text or _CLOSE in text:
        calls = _tagged(text)
    elif _MISTRAL in text:
        calls = _listed(text.split(_MISTRAL, 1)[1])
    elif _LLAMA in text:
        calls = _listed(text.split(_LLAMA, 1)[1].removesuffix("<|eom_id|>").removesuffix("<|eot_id|>"))
    else:
        calls = _plain(text)
    if len(calls) > _MAX_CALLS:
        raise MalformedError(f"there are {len(calls)} calls, at most {_MAX_CALLS} are read")
    return calls


def _tagged(text: str) -> list[Call]:
    calls: list[Call] = []
    position = 0
    while (begin := text.find(_OPEN, position)) >= 0:
        end = text.find(_CLOSE, begin)
        if end < 0:
            raise MalformedError(f"{_OPEN} is not closed")
        body = text[begin + len(_OPEN) : end]
        if _OPEN in body:
            raise MalformedError(f"{_OPEN} stands inside of another")
        calls.append(_coded(body) if "<function=" in body else _of(_json(body)))
        position = end + len(_CLOSE)
        if len(calls) > _MAX_CALLS:
            break
    if _CLOSE in text[position:] or not calls:
        raise MalformedError(f"{_CLOSE} closes nothing")
    return calls


def _coded(body: str) -> Call:
    match = _CODER.fullmatch(body)
    if match is None:
        raise MalformedError("<function=...> is not closed")
    arguments: dict[str, str] = {}
    inner, position = match[2].strip(), 0
    while position < len(inner):
        parameter = _PARAMETER.match(inner, position)
        if parameter is None or parameter[1] in arguments:
            raise MalformedError("text between parameters, or a parameter twice")
        arguments[parameter[1]] = parameter[2]
        position = parameter.end()
    return Call(match[1], arguments, is_text=True)


def _listed(text: str) -> list[Call]:
    value = _json(text)
    return [_of(item) for item in value] if isinstance(value, list) else [_of(value)]


def _plain(text: str) -> list[Call]:
    """A whole answer, or its only block of code, that is JSON of calls; anything else is no call."""
    blocks = _FENCED.findall(text)
    bare = (blocks[0] if len(blocks) == 1 else text).strip()
    if not bare.startswith(("{", "[")):
        return []
    try:
        value = _json(bare)
    except MalformedError:
        if re.match(r"[\[{\s]*\"name\"\s*:", bare):
            raise
        return []
    items = value if isinstance(value, list) else [value]
    is_call = bool(items) and all(
        isinstance(item, dict) and "name" in item and set(_NAMES) & set(item) for item in items
    )
    return [_of(item) for item in items] if is_call else []


def _of(value: Any) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise MalformedError('no object with a "name"')
    given = [name for name in _NAMES if name in value]
    if len(given) > 1:
        raise MalformedError('both "arguments" and "parameters"')
    arguments = value[given[0]] if given else {}
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        raise MalformedError("arguments that are no object")
    return Call(value["name"], arguments)


def _json(text: str) -> Any:
    try:
        return json.loads(text.strip(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"no JSON: {error}"[:200]) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found

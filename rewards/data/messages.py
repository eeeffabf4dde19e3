"""Prompts of messages as OpenAI's chat API has them, and definitions of tools: checked, and made plain."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.contracts import TaskError, schema_fault
from rewards.data.json_lines import read_file, sound_text

Message = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
_FIRST_ALONE = ("system", "developer")
_ASKS = ("user", "tool")
_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MAX_TOOLS_BYTES = 4 << 20
_MEDIA = ("image", "audio", "video", "file")


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """The messages of a row, each with text as content.

    Args:
      value: a list of messages, or one as JSON text, as a CSV file has it.
      where: names the row and the column in errors.

    Raises:
      TaskError: they are none, hold an image, have a role that is not known or in a wrong place, or the last one asks
        for no answer.
    """
    value = _parsed(value, where, "a list of messages")
    if not isinstance(value, list | tuple) or not value:
        raise TaskError(f"{where} is {value!r:.200}, expected a list of messages, each with role and content")
    messages = tuple(_message(message, f"{where}, message {number}") for number, message in enumerate(value, start=1))
    for number, message in enumerate(messages, start=1):
        if message["role"] in _FIRST_ALONE and number > 1:
            raise TaskError(
                f"{where}, message {number} has the role {message['role']}, expected it first or not at all"
            )
    last = messages[-1]["role"]
    if last not in _ASKS:
        raise TaskError(
            f"{where}: the last message is of the role {last}, expected user or tool: the policy answers after it; put "
            f"a reference answer in a column of its own"
        )
    return messages


def with_system(messages: Sequence[Message], system: str, where: str) -> tuple[Message, ...]:
    """The messages after a system message.

    Raises:
      TaskError: they begin with one already.
    """
    if messages[0]["role"] in _FIRST_ALONE:
        raise TaskError(f"{where} begins with a {messages[0]['role']} message, and task.system gives another: drop one")
    return ({"role": "system", "content": system}, *messages)


def question_of(messages: Sequence[Message]) -> str:
    """The last thing that a user said; of none, the last message."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    return str(said[-1] if said else messages[-1]["content"])


def identity_of(messages: Sequence[Message]) -> str:
    """A text that is the same for the same dialog, whatever its system message; of one user message, that message."""
    dialog = [message for message in messages if message["role"] not in _FIRST_ALONE]
    if len(dialog) == 1 and dialog[0]["role"] == "user":
        return str(dialog[0]["content"]).strip()
    return json.dumps([dict(message) for message in dialog], sort_keys=True)


def read_tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Definitions of functions as OpenAI's chat API has them; none of an empty list or null.

    Raises:
      TaskError: one is no such definition, or its parameters are no JSON schema of an object.
    """
    value = _without_nulls(value) if not isinstance(value, str) else _parsed(value, where, "a list of tools")
    value = [] if value is None else value
    if not isinstance(value, list | tuple):
        raise TaskError(f"{where} is {value!r:.200}, expected a list of tools")
    tools = tuple(_tool(tool, f"{where}, tool {number}") for number, tool in enumerate(value, start=1))
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise TaskError(f"{where} defines the tool {max(names, key=names.count)!r} twice")
    return tools


def read_tools_file(path: str) -> tuple[Mapping[str, Any], ...]:
    """The definitions in a JSON file, `task.tools`.

    Raises:
      TaskError: it can't be read, or holds something else.
    """
    payload = read_file(path, setting="task.tools", wanted="expected a JSON file with a list of tools")
    if len(payload) > _MAX_TOOLS_BYTES:
        raise TaskError(f"task.tools {path!r} has {len(payload)} bytes, at most {_MAX_TOOLS_BYTES} are read")
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"task.tools {path!r} is not UTF-8 at byte {error.start}") from None
    return read_tools(text, f"task.tools {path!r}")


def _parsed(value: Any, where: str, wanted: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is text, and no JSON of {wanted}: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Without the keys that parquet adds where other rows have them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise TaskError(f"{where} is {message!r:.200}, expected an object with role and content")
    given = {key: value for key, value in message.items() if value is not None}  # parquet fills in what is missing
    role = given.get("role")
    if role not in ROLES:
        raise TaskError(f"{where} has the role {role!r:.100}, expected {', '.join(ROLES)}")
    if unknown := sorted(set(given) - _KEYS):
        _refuse_media(unknown[0], where)
        raise TaskError(f"{where} has the key {unknown[0]!r}, expected {', '.join(sorted(_KEYS))}")
    calls = given.get("tool_calls") or ()
    if calls and role != "assistant":
        raise TaskError(f"{where} of the role {role} has tool_calls, which assistants make")
    if calls:
        given["tool_calls"] = [_call(call, f"{where}, call {number}") for number, call in enumerate(calls, start=1)]
    else:
        given.pop("tool_calls", None)
    if given.get("content") is None and calls:
        given["content"] = ""
    elif given.get("content") != "" or role == "user":  # others may say nothing: a tool without output, a call
        given["content"] = _content(given.get("content"), where)
    return given


def _content(content: Any, where: str) -> str:
    if isinstance(content, list | tuple):
        content = "".join(_part(part, f"{where}, part {number}") for number, part in enumerate(content, start=1))
    return sound_text(content, f"{where}: 'content'")


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, str):
        return part
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(kind, str):
        _refuse_media(kind, where)
    raise TaskError(f"{where} is {part!r:.200}, expected text")


def _refuse_media(kind: str, where: str) -> None:
    if any(kind.removeprefix("input_").startswith(media) for media in _MEDIA):
        raise TaskError(
            f"{where} is of the type {kind}: models of text are trained here; leave such rows out, or put a "
            f"description in its place"
        )


def _call(call: Any, where: str) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TaskError(f"{where} is {call!r:.200}, expected an object with function.name and function.arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's form; chat templates write an object
        arguments = _parsed(arguments or "{}", f"{where}: arguments", "an object")
    if not isinstance(arguments, Mapping):
        raise TaskError(f"{where}: arguments are {arguments!r:.200}, expected an object")
    return {**call, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}


def _tool(tool: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise TaskError(f'{where} is {tool!r:.200}, expected {{"type": "function", "function": {{...}}}}')
    function = tool["function"]
    name = function.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise TaskError(f"{where} has the name {name!r:.100}, expected letters, digits, dots, underscores and hyphens")
    parameters = function.get("parameters")
    if parameters is not None:
        _check_schema(parameters, f"{where} ({name}): parameters")
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _check_schema(schema: Any, where: str) -> None:
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise TaskError(f"{where} are {schema!r:.200}, expected a JSON schema of an object")
    if fault := schema_fault(schema):
        raise TaskError(f"{where} are no JSON schema: {fault}")

"""Messages and tools of a chat request, read strictly: what a session compares, and what a chat template is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving_bridge.sessions.errors import SessionError

ROLES = ("system", "user", "assistant", "tool")
_MAX_MESSAGES = 2_000
_MAX_TOOLS = 256


@dataclass(frozen=True)
class ToolCall:
    """A call that an assistant's message holds.

    Attributes:
      arguments: JSON as it was written.
    """

    call_id: str
    name: str
    arguments: str

    def as_chat(self) -> dict[str, Any]:
        """The call as chat templates read it: arguments are an object where they can be one."""
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": _object(self.arguments)},
        }

    def as_openai(self) -> dict[str, Any]:
        """The call as OpenAI's API has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation.

    Attributes:
      calls: of an assistant.
      name: of the tool, or of who speaks; "" if none is given.
      call_id: the call that a tool's message answers.
    """

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""

    @property
    def key(self) -> str:
        """Equal for messages that say the same: white space around the text, and how JSON is laid out, don't count."""
        calls = [[call.name, _object(call.arguments)] for call in self.calls]
        said = json.dumps([self.role, self.content.strip(), calls], sort_keys=True, default=str)
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()

    def as_chat(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        shown: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            shown["tool_calls"] = [call.as_chat() for call in self.calls]
        optional = {"name": self.name, "tool_call_id": self.call_id}
        return shown | {key: value for key, value in optional.items() if value}


def read_messages(values: Any) -> tuple[ChatMessage, ...]:
    """The messages of a request.

    Raises:
      SessionError: they are none that a model of text can be asked, or the last one is the assistant's.
    """
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_MESSAGES:
        raise SessionError(f"expected a list of 1 to {_MAX_MESSAGES} messages", param="messages")
    messages = tuple(_message(value, f"messages[{number}]") for number, value in enumerate(values))
    if messages[-1].role == "assistant":
        raise SessionError(
            "the last message is the assistant's; expected a user's or a tool's, which the model answers",
            param="messages",
        )
    return messages


def read_tools(values: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a request, as chat templates are given them. Raises `SessionError`."""
    if values is None:
        return ()
    if not isinstance(values, list) or len(values) > _MAX_TOOLS:
        raise SessionError(f"expected a list of at most {_MAX_TOOLS} tools", param="tools")
    for number, value in enumerate(values):
        function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise SessionError(
                'expected {"type": "function", "function": {"name": ..., "parameters": ...}}', param=f"tools[{number}]"
            )
        for name, kind, what in (("parameters", dict, "a JSON schema"), ("description", str, "a text")):
            if not isinstance(function.get(name), kind | None):
                raise SessionError(f"expected {what}", param=f"tools[{number}].function.{name}")
    return tuple(values)


def tools_key(tools: Sequence[Mapping[str, Any]]) -> str:
    """Equal for the same tools."""
    return hashlib.sha256(json.dumps(list(tools), sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def harmless_value(value: Any, harmless: Callable[[str], str]) -> Any:
    """A value whose texts went through `harmless`; nested at most as deep as requests may be."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless_value(key, harmless): harmless_value(part, harmless) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [harmless_value(part, harmless) for part in value]
    return value


def _message(value: Any, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise SessionError("expected an object with role and content", param=where)
    role = value.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise SessionError(f"role is {role!r:.50}, expected one of {', '.join(ROLES)}", param=f"{where}.role")
    calls, call_id = _calls(value.get("tool_calls"), where), _word(value.get("tool_call_id"), f"{where}.tool_call_id")
    calls = calls if role == "assistant" else ()
    content = value.get("content")
    if content is None and not calls:
        raise SessionError("expected text", param=f"{where}.content")
    return ChatMessage(
        role=role,
        content=_text(content, f"{where}.content"),
        calls=calls,
        name=_word(value.get("name"), f"{where}.name"),
        call_id=call_id if role == "tool" else "",
    )


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise SessionError(f"expected text or a list of parts, got {type(content).__name__}", param=where)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise SessionError(f"a part of type {kind!r:.50}: the model reads text only", param=where)
        texts.append(part["text"])
    return "".join(texts)


def _calls(values: Any, where: str) -> tuple[ToolCall, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise SessionError("expected a list of calls", param=f"{where}.tool_calls")
    calls = []
    for value in values:
        function = value.get("function") if isinstance(value, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise SessionError("expected calls with a function's name and arguments", param=f"{where}.tool_calls")
        arguments = function.get("arguments", "")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        calls.append(ToolCall(_word(value.get("id"), f"{where}.tool_calls"), function["name"], text))
    return tuple(calls)


def _word(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 256:
        raise SessionError("expected a text of at most 256 characters", param=where)
    return value


def _object(text: str) -> Any:
    """The arguments as a value; the text itself where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

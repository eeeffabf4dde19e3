"""What a message says, as guards see it: its text, and the calls of tools in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Messages = Sequence[Message]


def content_of(message: Message) -> str:
    """The text of a message, then a line for each call: the tool's name and the arguments.

    Args:
      message: with "content", a text or a list of parts with "text"; an assistant's may have "tool_calls".
    """
    content, lines = message.get("content"), []
    if isinstance(content, str):
        lines.append(content)
    elif isinstance(content, Sequence):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        lines += [text for text in texts if isinstance(text, str)]
    calls = message.get("tool_calls")
    lines += [_call(call) for call in (calls if isinstance(calls, list | tuple) else ())]
    return "\n".join(line for line in lines if line)


def call_text(name: str, arguments: str) -> str:
    """A call as guards see it."""
    return f"{name} {arguments}"


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return ""
    return call_text(str(function.get("name") or ""), str(function.get("arguments") or ""))

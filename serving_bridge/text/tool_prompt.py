"""Tools for chat templates that know none: a system message in the words of Hermes, which many models were shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TEXT = """You may call one or more of these functions to help with the task. They are described by JSON schemas:
<tools>
{tools}
</tools>
For each call, write a JSON object with the function's name and its arguments inside <tool_call></tool_call> tags:
<tool_call>
{{"name": "function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def with_tool_prompt(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The messages, with the tools described at the end of the system message, or in one of their own."""
    text = _TEXT.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]

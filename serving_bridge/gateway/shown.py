"""What guards are shown of a request: the conversation before each answer, as texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving_bridge.gateway.requests import Asked
from serving_bridge.safety import Messages
from serving_bridge.sessions import ChatMessage
from serving_bridge.text import Tokenizer

#: token ids beyond these are decoded in a thread, so that other requests go on
_INLINE_TOKENS = 8_192


async def conversations(asked: Asked, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[Messages]:
    """The conversation before the answers to each prompt.

    A chat has one: what its tools say of themselves as a system message, then its messages with their calls. A prompt
    of a completion is one message of a user; token ids are decoded, special tokens included.

    Args:
      prompts: token ids of each prompt.
    """
    if asked.kind == "chat":
        described = "\n".join(_descriptions(asked.tools))
        first = [{"role": "system", "content": described}] if described else []
        return [[*first, *chat_shown(asked.messages)]]
    texts = []
    for given, ids in zip(asked.prompts, prompts, strict=True):
        if isinstance(given, str):
            texts.append(given)
        elif len(ids) > _INLINE_TOKENS:
            texts.append(await asyncio.to_thread(tokenizer.decode_marked, ids))
        else:
            texts.append(tokenizer.decode_marked(ids))
    return [[{"role": "user", "content": text}] for text in texts]


def chat_shown(messages: Sequence[ChatMessage]) -> Messages:
    """The messages of a chat with their calls."""
    return [_shown(message) for message in messages]


def _shown(message: ChatMessage) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        shown["tool_calls"] = [call.as_openai() for call in message.calls]
    return shown


def _descriptions(value: Any) -> Iterator[str]:
    """Texts under "description" at any depth; requests are only so deep."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if key == "description" and isinstance(part, str):
                yield part
            else:
                yield from _descriptions(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _descriptions(part)

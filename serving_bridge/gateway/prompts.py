"""From a request's texts to token ids, so that nothing of a client's text becomes a special token.

Rendering and encoding are done here and not by the replica: a replica encodes a rendered dialog as a whole, and a
user's `<|im_end|>` would end his message there. Every text of a request, in messages, calls and tools alike, is
made harmless before the chat template sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from serving_bridge.gateway.errors import GatewayError, invalid
from serving_bridge.gateway.requests import Asked
from serving_bridge.sessions import harmless_value
from serving_bridge.text import Tokenizer, TokenizerError

#: longer texts are encoded in a thread, so that other requests go on
_MAX_INLINE_CHARACTERS = 16_384
#: no token of a vocabulary has more characters; a longer text can't fit, and is refused before it is encoded
_MAX_TOKEN_CHARACTERS = 256


class Prompts:
    """Encodes requests for one model.

    Attributes:
      max_context: tokens of prompt and answer together.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_context: int) -> None:
        self._tokenizer = tokenizer
        self.max_context = max_context
        self._vocab_size = tokenizer.vocab_size

    async def ids(self, asked: Asked) -> list[list[int]]:
        """Token ids of each prompt, one for a chat.

        Raises:
          GatewayError: a prompt is too long or empty, or the chat template refuses the dialog.
        """
        size = _characters(asked.prompts) + sum(map(_message_characters, asked.messages)) + _characters(asked.tools)
        if size > self.max_context * _MAX_TOKEN_CHARACTERS:
            raise self._too_long(f"more than {self.max_context}")
        if size > _MAX_INLINE_CHARACTERS:
            return await asyncio.to_thread(self._encoded, asked)
        return self._encoded(asked)

    def room(self, prompt: Sequence[int], max_tokens: int | None, longest: int) -> int:
        """Tokens that an answer may have.

        Args:
          max_tokens: as the request says it.
          longest: the gateway's own bound.

        Raises:
          GatewayError: prompt and answer don't fit into the context, or the request asks for more than the bound.
        """
        left = self.max_context - len(prompt)
        if left < 1:
            raise self._too_long(str(len(prompt)))
        if max_tokens is None:
            return min(left, longest)
        if max_tokens > min(longest, self.max_context):
            raise invalid(
                f"max_tokens is too large: {max_tokens}. This model writes at most {min(longest, self.max_context)}",
                "max_tokens",
            )
        if max_tokens > left:
            raise self._too_long(
                f"{len(prompt) + max_tokens} ({len(prompt)} of the prompt, {max_tokens} of the answer)"
            )
        return max_tokens

    def _encoded(self, asked: Asked) -> list[list[int]]:
        prompts = [self._chat(asked)] if asked.kind == "chat" else [self._plain(prompt) for prompt in asked.prompts]
        if not all(prompts):
            raise invalid("a prompt has no tokens", "messages" if asked.kind == "chat" else "prompt")
        return prompts

    def _chat(self, asked: Asked) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise GatewayError(400, "this model has no chat template; use /v1/completions", code="unsupported_endpoint")
        messages = [self._harmless(message.as_chat()) for message in asked.messages]
        tools = [self._harmless(tool) for tool in asked.tools]
        try:
            return self._tokenizer.encode_chat(messages, tools=tools)
        except TokenizerError:
            # Its words name files of this machine.
            raise invalid("the model's chat template does not take these messages in this order", "messages") from None

    def _plain(self, prompt: str | tuple[int, ...]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(self._tokenizer.harmless(prompt))
        if max(prompt) >= self._vocab_size:
            raise invalid(f"token id {max(prompt)} is not below {self._vocab_size}", "prompt")
        return list(prompt)

    def _harmless(self, value: Any) -> Any:
        return harmless_value(value, self._tokenizer.harmless)

    def _too_long(self, tokens: str) -> GatewayError:
        return invalid(
            f"This model's maximum context length is {self.max_context} tokens. However, you requested {tokens}",
            "messages",
            "context_length_exceeded",
        )


def _message_characters(message: Any) -> int:
    return len(message.content) + sum(len(call.arguments) for call in message.calls)


def _characters(values: Any) -> int:
    """Of all texts in a value; token ids count as one each."""
    if isinstance(values, str):
        return len(values)
    if isinstance(values, Mapping):
        return sum(len(key) + _characters(part) for key, part in values.items())
    return sum(map(_characters, values)) if isinstance(values, list | tuple) else 1

"""Messages without personal data and secrets, before anything of them is stored."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace

from serving_bridge.recordings.records import digest_of, text_of
from serving_bridge.safety import Checker, Decision, Redactor, Stage, Verdict
from serving_bridge.sessions import ChatMessage, ToolCall

#: stands for a text that no guard could judge
UNJUDGED = "<NOT_JUDGED>"
#: longer texts are judged in a thread, so that other requests go on
_INLINE_CHARS = 8_000
_CACHED = 4_096


class Redaction:
    """Redacts messages of one process; what it found is remembered by hashes, since each request shows all again.

    Args:
      checker: None stores messages as they are.
    """

    def __init__(self, checker: Checker | None) -> None:
        self._checker = checker
        self._cache: OrderedDict[str, ChatMessage | None] = OrderedDict()

    async def message(self, message: ChatMessage) -> tuple[ChatMessage, bool]:
        """The message as it may be stored, and whether it differs."""
        if self._checker is None:
            return message, False
        key = digest_of(text_of(message))
        if key not in self._cache:
            long = len(message.content) + sum(len(call.arguments) for call in message.calls) > _INLINE_CHARS
            found = await asyncio.to_thread(self._redacted, message) if long else self._redacted(message)
            self._cache[key] = None if found == message else found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        changed = self._cache[key]
        return (message, False) if changed is None else (changed, True)

    async def text(self, text: str) -> tuple[str, bool]:
        """The same for a text alone."""
        found, differs = await self.message(ChatMessage("user", text))
        return found.content, differs

    def _redacted(self, message: ChatMessage) -> ChatMessage:
        redactor = Redactor()
        return replace(
            message,
            content=self._clean(message.content, redactor),
            calls=tuple(
                ToolCall(
                    self._clean(c.call_id, redactor), self._clean(c.name, redactor), self._clean(c.arguments, redactor)
                )
                for c in message.calls
            ),
            name=self._clean(message.name, redactor),
            call_id=self._clean(message.call_id, redactor),
        )

    def _clean(self, text: str, redactor: Redactor) -> str:
        return cleaned(self._checker, text, redactor) if text and self._checker is not None else text


def cleaned(checker: Checker, text: str, redactor: Redactor | None = None) -> str:
    """A text without personal data and secrets; `UNJUDGED` where a guard failed."""
    decision: Decision = checker.check(text, Stage.TRAINING_DATA, redactor)
    failed = any(opinion.verdict is Verdict.ERROR for opinion in decision.opinions)
    return UNJUDGED if failed else decision.redacted

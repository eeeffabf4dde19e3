"""From sampled tokens to the text that a client gets, piece by piece: stop texts cut it, tool calls are taken out."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream

from rewards.tools import Call, parse_calls
from serving_bridge.sessions import ToolCall
from serving_bridge.text import Tokenizer

#: ids before an answer that its first text depends on: some tokenizers write a space only after a text
_CONTEXT = 6
#: what a call begins with, in the formats that `rewards.tools` reads
_CALL_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")


class Decoder:
    """Text of one answer's tokens. What is no whole character yet waits for the next token.

    Args:
      prompt: token ids before the answer.
      with_marks: keep special tokens, by which some models mark their calls; ends of answers are left out anyway.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, with_marks: bool) -> None:
        self._backend, self._ends = tokenizer.backend, frozenset(tokenizer.eos_ids)
        self._skips = not with_marks
        self._stream = DecodeStream(ids=list(prompt[-_CONTEXT:]), skip_special_tokens=self._skips)

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""
        return "".join([self._step(token) for token in tokens if token not in self._ends])

    def _step(self, token: int) -> str:
        try:
            return self._stream.step(self._backend, token) or ""
        except Exception:  # noqa: BLE001  (the library's own, where a decoder rewrites what it wrote before)
            self._stream = DecodeStream(ids=[], skip_special_tokens=self._skips)
            return self._stream.step(self._backend, token) or ""


class Stops:
    """Cuts a text before the first of some texts; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What can be released."""
        if self.found:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = held_back(text, self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """What was held back, and began no stop text after all."""
        held, self._held = self._held, ""
        return held


def held_back(text: str, marks: Sequence[str]) -> int:
    """Characters at the end of a text that one of the marks may begin with."""
    longest = min(len(text), max(map(len, marks)) - 1)
    for size in range(longest, 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0


@dataclass(frozen=True)
class Ending:
    """What comes at an answer's end: further text, and its calls of tools."""

    text: str
    calls: tuple[ToolCall, ...] = ()


class CallText:
    """Lets text through until a call of a tool may begin; what follows is read at the end.

    Args:
      must_call: the whole answer is one call, as JSON.
    """

    def __init__(self, *, must_call: bool) -> None:
        self._must_call = must_call
        self._released, self._held = "", ""
        self._in_call = must_call

    def push(self, text: str) -> str:
        """What can be released."""
        text = self._held + text
        if not self._in_call:
            self._in_call = any(mark in text for mark in _CALL_MARKS) or self._is_bare(text)
        if self._in_call:
            self._held = text
            return ""
        kept = len(text) if not (self._released or text).strip() else held_back(text, _CALL_MARKS)
        free = text[: len(text) - kept]
        self._released, self._held = self._released or free, text[len(text) - kept :]
        return free

    def end(self) -> Ending:
        """What was held back: text and calls. What can't be read as a call is text, as the model wrote it."""
        text, self._held = self._held, ""
        if not self._in_call:
            return Ending(text)
        parsed = parse_calls(text, "llama" if self._must_call else "auto")
        calls = [call for call in parsed.calls if isinstance(call, Call)]
        if not calls or len(calls) < len(parsed.calls):
            return Ending(text)
        return Ending(parsed.content, tuple(_called(call) for call in calls))

    def _is_bare(self, text: str) -> bool:
        """A call without marks: JSON from the answer's first character on."""
        return not self._released and text.lstrip().startswith("{")


def _called(call: Call) -> ToolCall:
    """With an id of nine letters and digits: some chat templates take no other, when the call comes back as history."""
    return ToolCall(f"c{secrets.token_hex(4)}", call.name, json.dumps(call.arguments, ensure_ascii=False))

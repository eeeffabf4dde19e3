"""Answers as OpenAI's API has them, whole and as streams of events.

Beside OpenAI's fields each answer has `weir`: response id, arm, and the policy versions of every choice's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import msgspec

from serving_bridge.gateway.answers import Choice, Delta
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.requests import Asked
from serving_bridge.gateway.upstream import PositionLogprobs, Span, TokenLogprob
from serving_bridge.text import Tokenizer

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode
_MIN_LOGPROB = -9999.0


@dataclass(frozen=True)
class Tag:
    """What every answer says of its making.

    Attributes:
      response_id: also the `id` of the answer.
      arm: whose version it is.
      version: policy version that the replica served when it was asked; None where no model wrote the answer.
      created: unix seconds.
      wanted_arm: that the conversation belongs to.
      arm_of: arm of a version.
      session: that the answer is recorded in; "" where nothing is kept.
      begins: how it stands to what was recorded there: continued, new or rebuilt.
      fallback: of an answer that stands in for the model's own: case, policy, citations.
    """

    response_id: str
    model: str
    arm: str
    version: int | None
    created: int
    wanted_arm: str
    arm_of: Callable[[int], str] = field(repr=False, compare=False)
    session: str = ""
    begins: str = ""
    fallback: Mapping[str, Any] | None = None

    def as_sampled(self, choices: Sequence[Choice]) -> Tag:
        """By the version that sampled the first token, once the replica has told it."""
        first = next((span.version for choice in choices for span in choice.spans), None)
        return self if first in (None, self.version) else replace(self, version=first, arm=self.arm_of(first))

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`."""
        return "fallback" if self.version is None else f"policy-{self.version}"


class Form:
    """Writes one answer.

    Args:
      prompts: texts of the prompts, which a completion with `echo` begins with.
    """

    def __init__(self, asked: Asked, tag: Tag, tokenizer: Tokenizer, prompts: Sequence[str] = ()) -> None:
        self._asked, self._tag, self._tokenizer, self._prompts = asked, tag, tokenizer, prompts
        self._is_chat = asked.kind == "chat"
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        head = _encode({**_head(tag, kind), "choices": []})[: -len(b"[]}")]
        opening = b'"delta":{"content":' if self._is_chat else b'"text":'
        closing = b"}," if self._is_chat else b","
        self._before = b"data: " + head + b'[{"index":'
        self._middle = b"," + opening
        self._after = closing + b'"logprobs":null,"finish_reason":null}]' + self._usage_of_chunk() + b"}\n\n"
        self._kind = kind
        self._offsets: dict[int, int] = {}

    def begin(self, num_choices: int) -> bytes:
        """The first events of a stream."""
        if self._is_chat:
            delta = {"role": "assistant", "content": "", "refusal": None}
            return b"".join(self._chunk(_stream_choice(index, delta)) for index in range(num_choices))
        if not self._asked.echo:
            return b""
        return b"".join(self._chunk(_text_choice(index, self._echo(index))) for index in range(num_choices))

    def event(self, delta: Delta, last: Sequence[Choice] = ()) -> bytes:
        """The event of a delta.

        Args:
          last: all choices, with the delta that ends the last of them: what Weir adds stands there.
        """
        if delta.finish is None and not delta.logprobs:  # nearly all events
            return b"%b%d%b%b%b" % (self._before, delta.index, self._middle, _encode(delta.text), self._after)
        weir = {"weir": self._weir(last)} if last else {}
        if not self._is_chat:
            choice = _text_choice(delta.index, delta.text, self._text_logprobs(delta), delta.finish)
            return self._chunk(choice, weir)
        events = b""
        if delta.text or delta.logprobs:
            logprobs = self._chat_logprobs(delta.logprobs) if delta.logprobs else None
            events += self._chunk(_stream_choice(delta.index, {"content": delta.text}, logprobs))
        if delta.calls:
            calls = [{"index": number, **call.as_openai()} for number, call in enumerate(delta.calls)]
            events += self._chunk(_stream_choice(delta.index, {"tool_calls": calls}))
        if delta.finish is not None:
            events += self._chunk(_stream_choice(delta.index, {}, None, delta.finish), weir)
        return events

    def end(self, usage: Mapping[str, int]) -> bytes:
        """The last events of a stream."""
        if not self._asked.usage_in_stream:
            return DONE
        return b"data: " + _encode({**_head(self._tag, self._kind), "choices": [], "usage": usage}) + b"\n\n" + DONE

    def failed(self, error: GatewayError) -> bytes:
        """The last event of a stream that can't be ended."""
        return b"data: " + error.payload() + b"\n\n"

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, int]) -> bytes:
        """The body of an answer that is no stream."""
        make = self._chat_choice if self._is_chat else self._completion_choice
        kind = "chat.completion" if self._is_chat else "text_completion"
        head = _head(self._tag.as_sampled(choices), kind)
        told = {**head, "choices": [make(choice) for choice in choices], "usage": dict(usage)}
        return _encode({**told, "weir": self._weir(choices)})

    def _usage_of_chunk(self) -> bytes:
        return b',"usage":null' if self._asked.usage_in_stream else b""

    def _chunk(self, choice: Mapping[str, Any], more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        told = {**_head(self._tag, self._kind), "choices": [choice], **more}
        if self._asked.usage_in_stream:
            told["usage"] = None
        return b"data: " + _encode(told) + b"\n\n"

    def _weir(self, choices: Sequence[Choice]) -> dict[str, Any]:
        tag = self._tag.as_sampled(choices)
        told: dict[str, Any] = {
            "response_id": tag.response_id,
            "arm": tag.arm,
            **({"wanted_arm": tag.wanted_arm} if tag.wanted_arm != tag.arm else {}),
            "policy_version": tag.version,
            "policy_versions": [[_span(span) for span in choice.spans] for choice in choices],
            **({"session": self._tag.session, "recorded": self._tag.begins} if self._tag.session else {}),
        }
        if any(choice.confidence is not None for choice in choices):
            told["confidence"] = [choice.confidence for choice in choices]
            told["low_confidence"] = [choice.is_unsure for choice in choices]
        if tag.fallback is not None:
            told["fallback"] = tag.fallback
        return told

    def _chat_choice(self, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [call.as_openai() for call in choice.calls]
        logprobs = self._chat_logprobs(choice.logprobs) if self._asked.sampling.logprobs is not None else None
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}

    def _completion_choice(self, choice: Choice) -> dict[str, Any]:
        text = (self._echo(choice.index) if self._asked.echo else "") + "".join(choice.text)
        delta = Delta(choice.index, text, choice.logprobs)
        return _text_choice(choice.index, text, self._text_logprobs(delta), choice.finish)

    def _echo(self, index: int) -> str:
        return self._prompts[index // self._asked.sampling.n]

    def _chat_logprobs(self, positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
        most = self._asked.sampling.logprobs or 0
        content = [
            {**self._entry(position), "top_logprobs": [self._entry(other) for other in _top(position, most)]}
            for position in positions
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: TokenLogprob) -> dict[str, Any]:
        text = self._token_text(token.token_id)
        # A token may hold a part of a character only, and the text does not say which bytes.
        of_bytes = None if "�" in text else list(text.encode())
        return {"token": text, "logprob": max(token.logprob, _MIN_LOGPROB), "bytes": of_bytes}

    def _text_logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self._asked.sampling.logprobs is None:
            return None
        most = self._asked.sampling.logprobs
        texts = [self._token_text(position.token_id) for position in delta.logprobs]
        offsets, place = [], self._offsets.get(delta.index, 0)
        for text in texts:
            offsets.append(place)
            place += len(text)
        self._offsets[delta.index] = place
        return {
            "tokens": texts,
            "token_logprobs": [max(position.logprob, _MIN_LOGPROB) for position in delta.logprobs],
            "top_logprobs": [
                {self._token_text(other.token_id): max(other.logprob, _MIN_LOGPROB) for other in _top(position, most)}
                for position in delta.logprobs
            ],
            "text_offset": offsets,
        }

    def _token_text(self, token: int) -> str:
        return str(self._tokenizer.backend.decode([token], skip_special_tokens=False))


def usage(
    prompts: Sequence[Sequence[int]], choices: Sequence[Choice], before: tuple[int, int] = (0, 0)
) -> dict[str, int]:
    """Tokens of a request: each prompt counts once, however many answers it has.

    Args:
      before: tokens of prompts and answers that came before these and were not told.
    """
    prompt = before[0] + sum(map(len, prompts))
    sampled = before[1] + sum(choice.num_tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def calls_schema(tools: Sequence[Mapping[str, Any]], call: str) -> dict[str, Any]:
    """The schema of an answer that must call a tool, as `Asked.call` says."""
    functions = [tool["function"] for tool in tools if call in ("*", tool["function"]["name"])]
    forms = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _head(tag: Tag, kind: str) -> dict[str, Any]:
    return {
        "id": tag.response_id,
        "object": kind,
        "created": tag.created,
        "model": tag.model,
        "system_fingerprint": tag.fingerprint,
    }


def _stream_choice(
    index: int, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text_choice(
    index: int, text: str, logprobs: Mapping[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _top(position: PositionLogprobs, most: int) -> Sequence[TokenLogprob]:
    """The likeliest tokens of a position; the sampled one comes first where it is none of them."""
    return sorted(position.top_logprobs, key=lambda other: -other.logprob)[:most]


def _span(span: Span) -> dict[str, Any]:
    return {"version": span.version, "start": span.start, "end": span.end}

"""What is kept of a conversation: texts once, turns and answers that name them, and whose they are.

Producer: a gateway. Consumers: the gateways that go on with the conversation, `serving_bridge.feedback`, people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from learner_jax.contracts import NOT_SAMPLED, quoted
from learner_jax.runtime import WeirError
from serving_bridge.sessions import ChatMessage, ToolCall

_DIGEST_BYTES = 16


class RecordingError(WeirError, ValueError):
    """A request of a person about recorded sessions that can't be met."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Tokens from `start` to before `end` that one policy version sampled."""

    version: int
    start: int
    end: int


class SessionHead(msgspec.Struct, frozen=True):
    """Whose a session is, and how long it may be kept.

    Attributes:
      user: hash of the tenant's name for its user; "" where it gives none.
      conversation: hash of what stays the same while the conversation goes on.
      generation: of the consent; a withdrawal raises it, and what has an older one is not stored.
      created_s: wall clock.
    """

    session_id: str
    tenant: str
    user: str
    conversation: str
    generation: str
    created_s: float
    retention_days: int


class Turn(msgspec.Struct, frozen=True):
    """What was said since an answer, or since the beginning.

    Attributes:
      turn_id: the same for the same messages at the same place of a session.
      parent: id of the answer before; "" at a beginning.
      texts: digests of its messages, in order; a prompt of a text completion is one message of a user.
      tools: digest of the definitions of tools; "" for none.
      tools_key: as trees compare it.
      tokens: int32, little-endian: what was given to the model since then; None where a text of it was redacted.
      is_chat: False for a prompt of text or token ids.
      rebuilt: whether it shows an answer that could not be matched with a recorded one.
    """

    turn_id: str
    parent: str
    texts: tuple[str, ...]
    tools: str
    tools_key: str
    tokens: bytes | None
    is_chat: bool = True
    rebuilt: bool = False


class Answer(msgspec.Struct, frozen=True):
    """One sampled answer.

    Attributes:
      answer_id: `{response id}/{choice}`.
      text: digest of its message, as the client was told it.
      tokens: int32, little-endian, the end token included; None where the text was redacted.
      logprobs: float32, little-endian, nats, as the sampler used them; None where they are not known.
      spans: policy versions of the tokens; empty where they are not known.
      finish_reason: as the client was told it.
      goes_on: whether the ids are what the client was told.
      bent: options that drew from another distribution than a temperature gives, such as "top_p".
      propensity: probability with which this arm and temperature were chosen for the request.
    """

    answer_id: str
    turn_id: str
    text: str
    tokens: bytes | None
    logprobs: bytes | None
    spans: tuple[Span, ...]
    finish_reason: str
    goes_on: bool
    arm: str
    model: str
    temperature: float
    max_tokens: int
    bent: tuple[str, ...]
    propensity: float
    created_s: float

    @property
    def is_exact(self) -> bool:
        """Whether token ids, log-probs and versions of all tokens are known."""
        return self.tokens is not None and self.logprobs is not None and bool(self.spans)


class Kept(msgspec.Struct, frozen=True):
    """What one request adds to a session, as a line of the journal.

    Attributes:
      texts: (digest, JSON of a message or of tools) that may be new.
    """

    head: SessionHead
    turn: Turn
    answers: tuple[Answer, ...]
    texts: tuple[tuple[str, str], ...]


def text_of(message: ChatMessage) -> str:
    """The JSON that a message is kept as."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    optional = {"name": message.name, "tool_call_id": message.call_id}
    fields |= {name: value for name, value in optional.items() if value}
    if message.calls:
        fields["tool_calls"] = [[call.call_id, call.name, call.arguments] for call in message.calls]
    return msgspec.json.encode(fields).decode()


def message_of(text: str) -> ChatMessage:
    """The message behind `text_of`."""
    fields = msgspec.json.decode(text)
    calls = tuple(ToolCall(*call) for call in fields.get("tool_calls", ()))
    return ChatMessage(fields["role"], fields["content"], calls, fields.get("name", ""), fields.get("tool_call_id", ""))


def digest_of(text: str) -> str:
    """What a text is kept under, within its session."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()


def name_of(*parts: str) -> str:
    """A name that stands for parts and does not show them."""
    content = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def user_of(tenant: str, user: str) -> str:
    """What a tenant's name for its user is kept as; "" for none."""
    return name_of("user", tenant, user) if user else ""


def int32(values: Sequence[int] | np.ndarray) -> bytes:
    return np.asarray(values, "<i4").tobytes()


def ids_of(tokens: bytes) -> list[int]:
    return np.frombuffer(tokens, "<i4").tolist()


def versions_of(answer: Answer) -> np.ndarray:
    """int32[T]: version of each token of an answer; `NOT_SAMPLED` where none is known.

    Raises:
      RecordingError: the spans don't fit the tokens.
    """
    length = len(answer.tokens or b"") // 4
    versions = np.full(length, NOT_SAMPLED, np.int32)
    for span in answer.spans:
        if not 0 <= span.start <= span.end <= length:
            raise RecordingError(f"answer {quoted(answer.answer_id, 80)}: a span ends at {span.end} of {length} tokens")
        versions[span.start : span.end] = span.version
    return versions

"""What a gateway says of a request that may be kept, and of the answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving_bridge.recordings.records import Span
from serving_bridge.sessions import ChatMessage


@dataclass(frozen=True)
class Request:
    """A request that may be kept.

    Attributes:
      user: as the tenant names its user; "" where it does not.
      conversation: hash of what stays the same while the conversation goes on.
      session: name that the client gave the session; "" for none.
      messages: of a chat; empty for a text completion.
      retention_days: of the tenant.
      free_temperature: whether the request leaves the temperature to the server.
    """

    tenant: str
    user: str
    conversation: str
    session: str = ""
    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    retention_days: int = 0
    free_temperature: bool = False


@dataclass(frozen=True)
class Sampled:
    """One choice of an answer as it was sampled and told.

    Attributes:
      tokens, logprobs: of the tokens until the answer ended; log-probs in nats, None where one is missing.
      spans: policy versions; empty where they are not known.
      goes_on: whether the ids are what the client was told.
    """

    index: int
    message: ChatMessage
    tokens: Sequence[int]
    logprobs: bytes | None
    spans: tuple[Span, ...]
    finish_reason: str
    goes_on: bool


@dataclass(frozen=True)
class Made:
    """How an answer came to be.

    Attributes:
      bent: as `Answer.bent`.
      arm_propensity: probability with which the arm was chosen.
    """

    response_id: str
    arm: str
    model: str
    temperature: float
    max_tokens: int
    bent: tuple[str, ...] = ()
    arm_propensity: float = 1.0

"""Hands a conversation over by HTTP: signed, within a deadline, and left alone for a while where it fails in a row."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
import msgspec

from learner_jax.runtime import WeirError

_MAX_BYTES = 64 << 10
_MAX_TEXT = 16_000
_FAILURES_TO_AVOID = 3
_FIRST_AVOIDED_S, _MAX_AVOIDED_S = 1.0, 60.0


class WebhookError(WeirError, RuntimeError):
    """The webhook did not take the conversation over; the message holds nothing of it."""


class _Reply(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)] = ""


@dataclass(frozen=True)
class HandedOver:
    """What the other side said; no text where it only took the conversation over."""

    text: str


class Webhook:
    """One address. The body is {"response_id", "tenant", "case", "messages"}; {"text": ...} in the reply is the answer.

    With a key, `X-Weir-Signature` is the HMAC-SHA-256, in hexadecimal, of the header `X-Weir-Timestamp`, a dot and the
    body. The timestamp is in unix seconds: refuse old ones.

    Args:
      key: of the signature; empty for none.
      clock: unix seconds; `monotonic` counts seconds for pauses.
    """

    def __init__(
        self,
        url: str,
        *,
        key: bytes = b"",
        timeout_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._key, self._timeout_s = url, key, timeout_s
        self._clock, self._monotonic = clock, monotonic
        self._failures = 0
        self._avoided_until_s, self._avoided_s = float("-inf"), 0.0

    async def hand_over(
        self,
        session: aiohttp.ClientSession,
        *,
        response_id: str,
        tenant: str,
        case: str,
        messages: Sequence[Mapping[str, Any]],
    ) -> HandedOver:
        """Posts a conversation. Raises `WebhookError` if nobody takes it within the deadline, or it failed lately."""
        if self._monotonic() < self._avoided_until_s:
            raise WebhookError("the webhook failed lately, and is left alone for a while")
        body = msgspec.json.encode(
            {"response_id": response_id, "tenant": tenant, "case": case, "messages": list(messages)}
        )
        try:
            found = await self._posted(session, body)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._strike()
            raise WebhookError(f"the webhook did not answer: {type(error).__name__}") from error
        except WebhookError:
            self._strike()
            raise
        self._failures, self._avoided_s = 0, 0.0
        return found

    async def _posted(self, session: aiohttp.ClientSession, body: bytes) -> HandedOver:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        async with session.post(
            self._url, data=body, headers=self._headers(body), timeout=timeout, allow_redirects=False
        ) as response:
            if response.status not in (200, 201, 202, 204):
                raise WebhookError(f"the webhook answered {response.status}")
            return HandedOver(_text(await _read(response)))

    def _headers(self, body: bytes) -> dict[str, str]:
        stamp = str(int(self._clock()))
        headers = {"Content-Type": "application/json", "X-Weir-Timestamp": stamp}
        if self._key:
            signed = hmac.new(self._key, stamp.encode() + b"." + body, hashlib.sha256)
            headers["X-Weir-Signature"] = signed.hexdigest()
        return headers

    def _strike(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_AVOID:
            self._avoided_s = min(_MAX_AVOIDED_S, max(_FIRST_AVOIDED_S, 2 * self._avoided_s))
            self._avoided_until_s = self._monotonic() + self._avoided_s


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for block in response.content.iter_any():
        body += block
        if len(body) > _MAX_BYTES:
            raise WebhookError(f"the webhook's answer has more than {_MAX_BYTES} bytes")
    return body


def _text(body: bytes) -> str:
    """The text of a reply; no body, or one without a text, takes the conversation over silently."""
    if not body.strip():
        return ""
    try:
        return msgspec.json.decode(body, type=_Reply).text
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise WebhookError('the webhook answered with something else than {"text": "..."}') from None

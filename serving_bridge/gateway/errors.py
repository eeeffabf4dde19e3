"""What a client of the gateway is told when it gets no answer: errors as OpenAI's API words them."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from learner_jax.runtime import WeirError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class GatewayError(WeirError, Exception):
    """A request that gets no answer, or none any more.

    Attributes:
      status: of HTTP.
      code: as OpenAI's clients know it.
      param: the field at fault; None for none.
      retry_after_s: when the same request may succeed; None where that is not known.
      closes: whether the connection can't be used again.

    Args:
      kind: OpenAI's `type` of the error, where the status does not say it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        closes: bool = False,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s, self.closes, self._kind = retry_after_s, closes, kind

    def fields(self) -> dict[str, Any]:
        """The body of the answer, as an object."""
        kind = self._kind or _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def payload(self) -> bytes:
        """The body of the answer."""
        return msgspec.json.encode(self.fields())

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer has beside its body's length and type."""
        headers: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.closes:
            headers.append((b"connection", b"close"))
        return headers


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> GatewayError:
    """An error of 400 that names the field at fault."""
    return GatewayError(400, message, code=code, param=param)


def unavailable(message: str, retry_after_s: float = 1.0) -> GatewayError:
    """An error of 503: no replica can answer now."""
    return GatewayError(503, message, code="unavailable", retry_after_s=retry_after_s)


def queue_full(message: str, retry_after_s: float = 1.0) -> GatewayError:
    """An error of 429: replicas are well, and too many requests wait."""
    return GatewayError(429, message, code="queue_full", retry_after_s=retry_after_s, kind="requests")


def timed_out(timeout_s: float) -> GatewayError:
    """An error of 504: the request's time is over."""
    return GatewayError(504, f"the answer was not ready within {timeout_s:g} s", code="timeout")


def broken_off() -> GatewayError:
    """Of a stream whose replica was lost after the first token: what was sent can't be taken back."""
    return GatewayError(502, "the replica was lost meanwhile; what was sent is not the whole answer", code="lost")

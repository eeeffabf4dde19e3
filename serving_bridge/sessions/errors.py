"""What a client of a session is told: errors as OpenAI's API words them."""

from __future__ import annotations

from typing import Any

from learner_jax.runtime import WeirError


class SessionError(WeirError, ValueError):
    """A request that a session does not answer.

    Attributes:
      status: of HTTP.
      code: as OpenAI's clients know it.
      param: the field at fault; "" for none.
    """

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_value", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def payload(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param or None, "code": self.code},
        }

"""How a request is refused that a server must not see."""

from __future__ import annotations

import msgspec


class Refused(Exception):
    """A request that the server must not see: (HTTP status, reason)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason

    def payload(self) -> bytes:
        """Shaped as vLLM's own errors."""
        return msgspec.json.encode({"error": {"message": self.reason, "type": "refused", "code": self.status}})

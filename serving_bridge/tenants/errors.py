"""What goes wrong at the door: a `Refusal` is for the sender of a request, a `TenantError` for the operator."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class TenantError(WeirError, ValueError):
    """A tenant, key, limit or price can't be what was asked for; says what was expected."""

    can_heal = False


class Refusal(WeirError):
    """A request that is not taken; the message is for its sender and names no other tenant.

    Attributes:
      status: HTTP status.
      code, kind: as OpenAI's error bodies have them (`code`, `type`).
      retry_after_s: the sender may try again after so many seconds; None where that can't help.
    """

    status = 403
    code: str | None = None
    kind = "invalid_request_error"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadKey(Refusal):
    """No key, or one that is malformed, unknown, expired or revoked: the sender is not told which."""

    status, code = 401, "invalid_api_key"


class NotAllowed(Refusal):
    """The key is good, and its scopes or its tenant's state don't cover the request."""

    status, code, kind = 403, "not_allowed", "permission_error"


class RateLimited(Refusal):
    """A limit of the tenant or of the deployment is reached; it has room again after `retry_after_s`."""

    status, code, kind = 429, "rate_limit_exceeded", "requests"


class TooLarge(Refusal):
    """The request alone is over a limit: no wait helps."""

    status, code, kind = 429, "request_too_large", "tokens"


class BudgetSpent(Refusal):
    """The month's budget is used up."""

    status, code, kind = 429, "insufficient_quota", "insufficient_quota"


class QueueFull(Refusal):
    """Too many requests wait: of this tenant, or of all."""

    status, code, kind = 429, "queue_full", "requests"


class Shed(Refusal):
    """The deployment is under pressure, and requests of this class give way."""

    status, code, kind = 429, "overloaded", "requests"


class DeadlinePassed(Refusal):
    """The request waited for its turn until its deadline."""

    status, code, kind = 429, "deadline_exceeded", "requests"


class Unavailable(Refusal):
    """Keys can't be checked: the database has been away for longer than a revoked key may live."""

    status, code, kind = 503, "keys_unavailable", "server_error"

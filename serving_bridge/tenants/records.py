"""Who a tenant is and what it may do, as records that are checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from learner_jax.contracts import quoted
from learner_jax.runtime import PLAIN_NAME
from serving_bridge.settings import Priority
from serving_bridge.tenants.errors import TenantError

MAX_NAME = 64
#: Characters of a label, or of a model's name.
MAX_TEXT = 200
#: Of counts and sums that a row of either engine takes, with room for adding them up.
MAX_COUNT = 2**53
#: Of the deployment as a whole, among the scopes of limits; tenants' begin with "tenant:".
DEPLOYMENT = "deployment"


def tenant_scope(tenant: str) -> str:
    """The scope of limits that are a tenant's own."""
    return f"tenant:{tenant}"


def checked_tenant(name: str) -> str:
    """A tenant's name: letters, digits and `._-`, at most 64 of them. Raises `TenantError`."""
    if len(name) > MAX_NAME or not PLAIN_NAME.fullmatch(name):
        raise TenantError(f"tenant {quoted(name)}: expected at most {MAX_NAME} of A-Z a-z 0-9 . _ -, a letter first")
    return name


class Scopes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key may be used for; nothing named means all.

    Attributes:
      models: names of models, as requests have them.
      routes: paths, such as "/v1/chat/completions".
      classes: priority classes that a request may ask for.
    """

    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    classes: tuple[Priority, ...] = ()

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()


def decoded_scopes(text: str) -> Scopes:
    """The scopes of a row. One that can't be read allows nothing: no model has the empty name."""
    try:
        return msgspec.json.decode(text, type=Scopes)
    except msgspec.MsgspecError:
        return Scopes(models=("",), routes=("",))


@dataclass(frozen=True)
class Limits:
    """Limits of a tenant, or of the deployment; None is no limit.

    Attributes:
      requests_per_minute, tokens_per_minute: rates; prompt and completion tokens count alike.
      request_burst, token_burst: what may come at once after a pause; by default a minute's worth.
      concurrency: answers at the same time.
      month_tokens: tokens in a calendar month, UTC.
      month_nanos: money in a calendar month, in billionths of the currency's unit.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    request_burst: int | None = None
    token_burst: int | None = None
    concurrency: int | None = None
    month_tokens: int | None = None
    month_nanos: int | None = None

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_COUNT:
                raise TenantError(f"{name} is {value}, expected 1 to {MAX_COUNT}, or none for no limit")
        for burst, rate in (("request_burst", "requests_per_minute"), ("token_burst", "tokens_per_minute")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise TenantError(f"{burst} is set without {rate}: expected both, or none")


#: Columns of the table `limits` beside its scope, in order.
LIMITS = tuple(Limits.__dataclass_fields__)
NO_LIMITS = Limits()


@dataclass(frozen=True)
class Tenant:
    """A tenant.

    Attributes:
      weight: its share among tenants of its class that wait; 2 gets twice the tokens of 1.
      consent: whether what it says and gets may be trained on, where a request does not say otherwise.
      retention_days: how long its conversations may be kept; 0 keeps none.
      salt_generation: raised to give it a new cache salt.
    """

    name: str
    priority: Priority
    weight: int
    consent: bool
    retention_days: int
    salt_generation: int
    suspended: bool
    created_s: float
    limits: Limits = NO_LIMITS


@dataclass(frozen=True)
class KeyInfo:
    """What can be told of a key; the key itself was shown once and is not kept.

    Attributes:
      expires_s, revoked_s: seconds since the epoch; None: never, not yet.
      replaced_by: id of the key that took its place.
    """

    key_id: str
    tenant: str
    label: str
    scopes: Scopes
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None
    replaced_by: str | None = None

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        if self.revoked_s is not None:
            return "revoked"
        return "active" if self.expires_s is None or now < self.expires_s else "expired"


@dataclass(frozen=True)
class Usage:
    """What a tenant used in a month.

    Attributes:
      nanos: money, in billionths of the currency's unit.
      reserved: answers that never told their usage, and were billed as reserved.
    """

    tenant: str
    month: str
    answers: int
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    reserved: int


class MeterRow(msgspec.Struct, frozen=True):
    """One billed answer, as `export` writes it: a line of JSON. Consumer: billing.

    Attributes:
      month: "2026-11", by the gateway's clock when the answer began.
      nanos: money, in billionths of the currency's unit.
      settled: "usage" as counted, "reservation" for an answer that never told its usage.
    """

    sequence: int
    response_id: str
    tenant: str
    key_id: str
    model: str
    month: str
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    settled: str
    began_s: float


@dataclass(frozen=True)
class Caller:
    """Who sent a request, as its key says.

    Attributes:
      cache_salt: for vLLM, so that its prefix cache is this tenant's alone.
      consent, retention_days: defaults of its tenant.
    """

    tenant: str
    key_id: str
    priority: Priority
    weight: int
    scopes: Scopes
    cache_salt: str
    consent: bool
    retention_days: int
    suspended: bool = False
    limits: Limits = field(default=NO_LIMITS)

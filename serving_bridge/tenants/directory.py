"""A gateway's copy of all keys and tenants in memory, so that no request waits for the database."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serving_bridge.database import Database, Session
from serving_bridge.settings import Priority
from serving_bridge.tenants import account_rows as rows
from serving_bridge.tenants.api_keys import is_well_formed
from serving_bridge.tenants.errors import BadKey, NotAllowed, Unavailable
from serving_bridge.tenants.money import Price
from serving_bridge.tenants.records import NO_LIMITS, Caller, Limits
from serving_bridge.tenants.secret import DeploymentSecret

_BAD_KEY = (
    "Expected a valid API key as Authorization: Bearer KEY. Keys are shown once, when they are made; ask the operator "
    "of this deployment for a new one."
)
_BEARER = "bearer "
#: Of an Authorization header that is looked at.
_MAX_HEADER = 200


@dataclass(frozen=True)
class _Held:
    digest: bytes
    expires_s: float | None
    caller: Caller


@dataclass(frozen=True)
class _Copy:
    """All of it at one revision; replaced whole, never changed."""

    revision: int = -1
    keys: Mapping[bytes, _Held] = field(default_factory=dict)
    deployment: Limits = NO_LIMITS
    prices: Mapping[str, Price] = field(default_factory=dict)


class Directory:
    """Who holds which key; the whole of it is read again whenever its revision in the database has changed.

    The life of a revoked key: it is refused once `refresh` has read its revocation, so within the pause between two
    refreshes plus the time that one takes; and while the database is away within `max_stale_s` of the start of the last
    read that succeeded, since then no key at all is taken. A new key works as soon as a refresh has read it.

    Unknown keys are answered from memory: guessing them costs the database nothing.

    Args:
      max_stale_s: bound on the age of the copy, by a monotonic clock.
      clock: monotonic, in seconds.
      wall: wall clock, for the dates at which keys expire.
    """

    def __init__(
        self,
        database: Database,
        secret: DeploymentSecret,
        *,
        max_stale_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._secret = database, secret
        self._max_stale_s, self._clock, self._wall = max_stale_s, clock, wall
        self._copy = _Copy()
        self._read_s = float("-inf")

    def refresh(self) -> None:
        """Reads what changed; blocks on the database, so a gateway calls it in a thread.

        Raises:
          DatabaseError: it can't be read; the copy stays as it is.
        """
        began_s = self._clock()
        known = self._copy.revision
        copy = self._db.read(lambda session: self._read(session, known))
        if copy is not None:
            self._copy = copy
        self._read_s = began_s

    @property
    def deployment(self) -> Limits:
        """Limits of the deployment as a whole."""
        return self._copy.deployment

    @property
    def prices(self) -> Mapping[str, Price]:
        return self._copy.prices

    @property
    def age_s(self) -> float:
        """Seconds since the start of the last read that succeeded; infinite before the first."""
        return self._clock() - self._read_s

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Who sends a request.

        Args:
          headers: of the request, with names in lower case or a mapping that takes any.

        Raises:
          BadKey: there is no valid key; the same words for every reason.
          NotAllowed: its tenant is suspended.
          Unavailable: the copy is older than `max_stale_s`.
        """
        header = headers.get("authorization", "")
        if self.age_s > self._max_stale_s:
            raise Unavailable("API keys can't be checked at the moment; try again in a while.", retry_after_s=5.0)
        key = header[len(_BEARER) :] if len(header) < _MAX_HEADER and header[: len(_BEARER)].lower() == _BEARER else ""
        if not is_well_formed(key):
            raise BadKey(_BAD_KEY)
        digest = self._secret.digest(key)
        held = self._copy.keys.get(digest)
        if held is None or not hmac.compare_digest(held.digest, digest):
            raise BadKey(_BAD_KEY)
        if held.expires_s is not None and self._wall() >= held.expires_s:
            raise BadKey(_BAD_KEY)
        if held.caller.suspended:
            raise NotAllowed("This account is suspended; ask the operator of this deployment.")
        return held.caller

    def _read(self, session: Session, known: int) -> _Copy | None:
        revision = rows.revision(session)
        if revision == known:
            return None
        tenants = {tenant.name: tenant for tenant in rows.tenants(session)}
        keys = {}
        for digest, key in rows.usable_keys(session):
            tenant = tenants.get(key.tenant)
            if tenant is None:
                continue
            caller = Caller(
                tenant=tenant.name,
                key_id=key.key_id,
                priority=tenant.priority,
                weight=tenant.weight,
                scopes=key.scopes,
                cache_salt=self._secret.cache_salt(tenant.name, tenant.salt_generation),
                consent=tenant.consent,
                retention_days=tenant.retention_days,
                suspended=tenant.suspended,
                limits=tenant.limits,
            )
            keys[digest] = _Held(digest, key.expires_s, caller)
        return _Copy(revision, keys, rows.deployment_limits(session), rows.prices(session))


def check_scopes(caller: Caller, *, model: str, route: str, priority: Priority | None = None) -> None:
    """Refuses what a key's scopes don't cover.

    Args:
      priority: the class that the request asks for, if any; never a better one than the tenant's.

    Raises:
      NotAllowed: says which of them.
    """
    scopes = caller.scopes
    if scopes.models and model not in scopes.models:
        raise NotAllowed("This API key does not cover the model that the request names.")
    if scopes.routes and route not in scopes.routes:
        raise NotAllowed("This API key does not cover this route.")
    asked = caller.priority if priority is None else priority
    if scopes.classes and asked not in scopes.classes:
        raise NotAllowed("This API key does not cover the request's priority class.")

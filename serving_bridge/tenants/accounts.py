"""What an operator does with tenants: adds them, gives and takes keys, sets limits and prices, reads bills."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from learner_jax.contracts import quoted
from serving_bridge.database import Database, Session
from serving_bridge.settings import PRIORITIES, Priority
from serving_bridge.tenants import account_rows as rows
from serving_bridge.tenants.api_keys import new_key, new_key_id
from serving_bridge.tenants.errors import TenantError
from serving_bridge.tenants.money import Price
from serving_bridge.tenants.records import (
    DEPLOYMENT,
    MAX_COUNT,
    MAX_TEXT,
    KeyInfo,
    Limits,
    MeterRow,
    Scopes,
    Tenant,
    Usage,
    checked_tenant,
    tenant_scope,
)
from serving_bridge.tenants.secret import DeploymentSecret

_MAX_DAYS = 36_500
_MAX_WEIGHT = 1_000_000
_PAGE = 1000
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)


@dataclass(frozen=True)
class NewKey:
    """A key that was just made; `key` is nowhere else, and can't be shown again."""

    info: KeyInfo
    key: str


class Accounts:
    """The tenants of a deployment, for its operator; gateways only read them (`Directory`).

    Args:
      secret: needed to make keys; without it everything else works.
      clock: wall clock in seconds.
    """

    def __init__(
        self, database: Database, secret: DeploymentSecret | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._db, self._secret, self._clock = database, secret, clock

    def add(
        self,
        name: str,
        *,
        priority: Priority = "free",
        weight: int = 1,
        consent: bool = False,
        retention_days: int = 0,
    ) -> Tenant:
        """Adds a tenant, without limits and without keys.

        Raises:
          TenantError: there is one of this name, or a value is out of its range.
        """
        made = Tenant(checked_tenant(name), priority, weight, consent, retention_days, 0, False, self._clock())
        _check(made)

        def work(session: Session) -> None:
            if not rows.insert_tenant(session, made):
                raise TenantError(f"tenant {name} exists: choose another name, or change it with `set`")
            rows.changed(session)

        self._db.write(work)
        return made

    def change(self, name: str, **values: bool | int | str) -> Tenant:
        """Sets priority, weight, consent, retention_days or suspended of a tenant. Raises `TenantError`."""

        def work(session: Session) -> Tenant:
            found = replace(_one(session, name), **values)  # type: ignore[arg-type]
            _check(found)
            rows.update_tenant(session, name, **{key: _column(value) for key, value in values.items()})
            rows.changed(session)
            return found

        return self._db.write(work)

    def rotate_salt(self, name: str) -> Tenant:
        """Gives a tenant another cache salt; what vLLM cached for it is not found again."""
        found = self.show(name)
        generation = found.salt_generation + 1

        def work(session: Session) -> None:
            rows.update_tenant(session, name, salt_generation=generation)
            rows.changed(session)

        self._db.write(work)
        return replace(found, salt_generation=generation)

    def tenants(self) -> list[Tenant]:
        """All tenants, by name."""
        return self._db.read(rows.tenants)

    def show(self, name: str) -> Tenant:
        """Raises `TenantError` if there is none of this name."""
        return self._db.read(lambda session: _one(session, name))

    def keys(self, tenant: str) -> list[KeyInfo]:
        """A tenant's keys, ended ones too, in the order of their making."""
        return self._db.read(lambda session: rows.keys(session, tenant=_one(session, tenant).name))

    def create_key(
        self, tenant: str, *, label: str = "", scopes: Scopes | None = None, expires_s: float | None = None
    ) -> NewKey:
        """Makes a key.

        Args:
          expires_s: from when it is refused, seconds since the epoch.

        Raises:
          TenantError: there is no such tenant, or the key would be of no use.
        """
        now = self._clock()
        key = KeyInfo(new_key_id(), tenant, _text("label", label), _usable(scopes or Scopes()), now, expires_s)
        if expires_s is not None and not now < expires_s < MAX_COUNT:
            raise TenantError("the key would have expired already: expected a time that is yet to come")
        made = NewKey(key, new_key())
        digest = self._digest(made.key)

        def work(session: Session) -> None:
            _one(session, tenant)
            rows.insert_key(session, digest, key)
            rows.changed(session)

        self._db.write(work)
        return made

    def rotate_key(self, key_id: str, *, overlap_s: float, expires_s: float | None = None) -> NewKey:
        """Makes a key with the label and scopes of another, which is refused after `overlap_s` seconds.

        Raises:
          TenantError: there is no such key, or it ended, or was replaced before.
        """
        now = self._clock()
        if not 0 <= overlap_s < MAX_COUNT:
            raise TenantError(f"an overlap of {overlap_s} s: expected 0 or more")
        if expires_s is not None and not now < expires_s < MAX_COUNT:
            raise TenantError("the key would have expired already: expected a time that is yet to come")
        new_id, key = new_key_id(), new_key()
        digest = self._digest(key)

        def work(session: Session) -> KeyInfo:
            old = _live_key(session, key_id, now)
            if old.replaced_by is not None:
                raise TenantError(f"{key_id} was replaced by {old.replaced_by}: rotate that one")
            made = KeyInfo(new_id, old.tenant, old.label, old.scopes, now, expires_s)
            ends_s = now + overlap_s if old.expires_s is None else min(now + overlap_s, old.expires_s)
            rows.insert_key(session, digest, made)
            rows.update_key(session, key_id, expires_s=ends_s, replaced_by=new_id)
            rows.changed(session)
            return made

        return NewKey(self._db.write(work), key)

    def revoke_key(self, key_id: str) -> KeyInfo:
        """Ends a key for good; gateways refuse it within the bound that `Directory` states."""
        now = self._clock()

        def work(session: Session) -> KeyInfo:
            old = _known_key(session, key_id)
            if old.revoked_s is None:
                rows.update_key(session, key_id, revoked_s=now)
                rows.changed(session)
            return old if old.revoked_s is not None else replace(old, revoked_s=now)

        return self._db.write(work)

    def limits(self, tenant: str | None) -> Limits:
        """A tenant's limits, or the deployment's (None)."""
        return self._db.read(lambda session: _limits(session, tenant))

    def set_limits(self, tenant: str | None, values: Mapping[str, int | None]) -> Limits:
        """Changes the limits that are named; None takes one away. Without a tenant: the deployment's.

        Raises:
          TenantError: there is no such tenant, or a value is out of its range.
        """

        def work(session: Session) -> Limits:
            limits = rows.with_limits(_limits(session, tenant), values)
            rows.put_limits(session, DEPLOYMENT if tenant is None else tenant_scope(tenant), limits)
            rows.changed(session)
            return limits

        return self._db.write(work)

    def prices(self) -> dict[str, Price]:
        return self._db.read(rows.prices)

    def set_price(self, model: str, price: Price) -> None:
        """What a million tokens of a model cost from now on; "*" stands for models that are not named."""
        _text("model", model)

        def work(session: Session) -> None:
            rows.put_price(session, model, price)
            rows.changed(session)

        self._db.write(work)

    def usage(self, month: str, tenant: str | None = None) -> list[Usage]:
        """What was billed in a month such as "2026-11", by tenant. Raises `TenantError` for no month."""
        return self._db.read(lambda session: rows.usage(session, checked_month(month), tenant))

    def export(self, *, month: str | None = None, tenant: str | None = None) -> Iterator[MeterRow]:
        """Billed answers one by one, in the order in which they were written.

        Not covered: on PostgreSQL a transaction that is open while this reads may add rows before the last one shown.
        """
        month = None if month is None else checked_month(month)
        after = 0
        while page := self._db.read(partial(rows.metered, after=after, limit=_PAGE, month=month, tenant=tenant)):
            yield from page
            after = page[-1].sequence

    def _digest(self, key: str) -> bytes:
        if self._secret is None:
            raise TenantError("keys are made with the deployment's secret: give its folder (--secret)")
        return self._secret.digest(key)


def checked_month(month: str) -> str:
    """A month such as "2026-11". Raises `TenantError`."""
    if not _MONTH.fullmatch(month):
        raise TenantError(f"month {quoted(month)}: expected one such as 2026-11")
    return month


def _one(session: Session, name: str) -> Tenant:
    found = rows.tenants(session, checked_tenant(name))
    if not found:
        raise TenantError(f"tenant {name} does not exist: `list` shows those that do, `add` makes one")
    return found[0]


def _limits(session: Session, tenant: str | None) -> Limits:
    return rows.deployment_limits(session) if tenant is None else _one(session, tenant).limits


def _known_key(session: Session, key_id: str) -> KeyInfo:
    found = rows.keys(session, key_id=_text("key", key_id))
    if not found:
        raise TenantError(f"key {quoted(key_id)} does not exist: `show TENANT` lists a tenant's keys")
    return found[0]


def _live_key(session: Session, key_id: str, now: float) -> KeyInfo:
    found = _known_key(session, key_id)
    if (state := found.state(now)) != "active":
        raise TenantError(f"key {key_id} is {state}: make a new one with `key create {found.tenant}`")
    return found


def _check(tenant: Tenant) -> None:
    if tenant.priority not in PRIORITIES:
        raise TenantError(f"class {quoted(tenant.priority)}: expected one of {', '.join(PRIORITIES)}")
    if not 1 <= tenant.weight <= _MAX_WEIGHT:
        raise TenantError(f"weight is {tenant.weight}, expected 1 to {_MAX_WEIGHT}")
    if not 0 <= tenant.retention_days <= _MAX_DAYS:
        raise TenantError(f"retention is {tenant.retention_days} days, expected 0 to {_MAX_DAYS}")


def _usable(scopes: Scopes) -> Scopes:
    for name, values in (("model", scopes.models), ("route", scopes.routes)):
        for value in values:
            _text(name, value)
    return scopes


def _text(what: str, text: str) -> str:
    if len(text) > MAX_TEXT or (text and not text.isprintable()):
        raise TenantError(f"{what} {quoted(text, 40)}: expected at most {MAX_TEXT} printable characters")
    return text


def _column(value: bool | int | str) -> int | str:
    return int(value) if isinstance(value, bool) else value

"""Tenants, keys, limits and prices as rows, inside a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from serving_bridge.database import Row, Session
from serving_bridge.tenants.money import Price
from serving_bridge.tenants.records import (
    DEPLOYMENT,
    LIMITS,
    NO_LIMITS,
    KeyInfo,
    Limits,
    MeterRow,
    Tenant,
    Usage,
    decoded_scopes,
    tenant_scope,
)

_TENANT = "tenant, priority, weight, consent, retention_days, salt_generation, suspended, created_s"
_KEY = "key_id, tenant, label, scopes, created_s, expires_s, revoked_s, replaced_by"
_METER = ", ".join(MeterRow.__struct_fields__)


def revision(session: Session) -> int:
    """A number that every change of these rows raises."""
    ((value,),) = session.execute("SELECT value FROM tenants_state WHERE key = 'revision'")
    return value


def changed(session: Session) -> None:
    """Tells the gateways that something changed."""
    session.execute("UPDATE tenants_state SET value = value + 1 WHERE key = 'revision'")


def tenants(session: Session, name: str | None = None) -> list[Tenant]:
    """All tenants by name, or the one of this name."""
    where, parameters = ("WHERE tenant = ?", (name,)) if name is not None else ("", ())
    limits = all_limits(session)
    return [
        _tenant(row, limits.get(tenant_scope(row[0]), NO_LIMITS))
        for row in session.execute(f"SELECT {_TENANT} FROM tenants {where} ORDER BY tenant", parameters)
    ]


def _tenant(row: Row, limits: Limits) -> Tenant:
    name, priority, weight, consent, retention_days, generation, suspended, created_s = row
    return Tenant(name, priority, weight, bool(consent), retention_days, generation, bool(suspended), created_s, limits)


def insert_tenant(session: Session, tenant: Tenant) -> bool:
    """False if there is one of this name."""
    return bool(
        session.execute(
            f"INSERT INTO tenants ({_TENANT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING tenant",
            (
                tenant.name,
                tenant.priority,
                tenant.weight,
                int(tenant.consent),
                tenant.retention_days,
                tenant.salt_generation,
                int(tenant.suspended),
                tenant.created_s,
            ),
        )
    )


def update_tenant(session: Session, name: str, **values: int | str) -> bool:
    """Sets columns of a tenant; False if there is none of this name."""
    assignments = ", ".join(f"{column} = ?" for column in values)
    sql = f"UPDATE tenants SET {assignments} WHERE tenant = ? RETURNING tenant"
    return bool(session.execute(sql, (*values.values(), name)))


def all_limits(session: Session) -> dict[str, Limits]:
    """By scope: "tenant:NAME", or "deployment"."""
    rows = session.execute(f"SELECT scope, {', '.join(LIMITS)} FROM limits")
    return {scope: Limits(*values) for scope, *values in rows}


def deployment_limits(session: Session) -> Limits:
    return all_limits(session).get(DEPLOYMENT, NO_LIMITS)


def put_limits(session: Session, scope: str, limits: Limits) -> None:
    marks = ", ".join("?" * (1 + len(LIMITS)))
    assignments = ", ".join(f"{name} = excluded.{name}" for name in LIMITS)
    session.execute(
        f"INSERT INTO limits (scope, {', '.join(LIMITS)}) VALUES ({marks}) "
        f"ON CONFLICT (scope) DO UPDATE SET {assignments}",
        (scope, *(getattr(limits, name) for name in LIMITS)),
    )


def keys(session: Session, *, tenant: str | None = None, key_id: str | None = None) -> list[KeyInfo]:
    """Keys in the order of their making: all, a tenant's, or the one of this id."""
    column, value = ("tenant", tenant) if tenant is not None else ("key_id", key_id)
    where = f"WHERE {column} = ?" if value is not None else ""
    rows = session.execute(
        f"SELECT {_KEY} FROM api_keys {where} ORDER BY created_s, key_id", (value,) if value is not None else ()
    )
    return [_key(row) for row in rows]


def _key(row: Row) -> KeyInfo:
    key_id, tenant, label, scopes, *rest = row
    return KeyInfo(key_id, tenant, label, decoded_scopes(scopes), *rest)


def usable_keys(session: Session) -> list[tuple[bytes, KeyInfo]]:
    """(digest, key) of every key that is not revoked."""
    rows = session.execute(f"SELECT digest, {_KEY} FROM api_keys WHERE revoked_s IS NULL")
    return [(bytes(digest), _key(tuple(row))) for digest, *row in rows]


def insert_key(session: Session, digest: bytes, key: KeyInfo) -> None:
    session.execute(
        f"INSERT INTO api_keys (digest, {_KEY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            digest,
            key.key_id,
            key.tenant,
            key.label,
            key.scopes.encoded(),
            key.created_s,
            key.expires_s,
            key.revoked_s,
            key.replaced_by,
        ),
    )


def update_key(session: Session, key_id: str, **values: float | str | None) -> None:
    assignments = ", ".join(f"{column} = ?" for column in values)
    session.execute(f"UPDATE api_keys SET {assignments} WHERE key_id = ?", (*values.values(), key_id))


def prices(session: Session) -> dict[str, Price]:
    """What a million tokens of each model cost."""
    rows = session.execute("SELECT model, prompt, completion FROM prices ORDER BY model")
    return {model: Price(Decimal(prompt), Decimal(completion)) for model, prompt, completion in rows}


def put_price(session: Session, model: str, price: Price) -> None:
    session.execute(
        "INSERT INTO prices VALUES (?, ?, ?) "
        "ON CONFLICT (model) DO UPDATE SET prompt = excluded.prompt, completion = excluded.completion",
        (model, str(price.prompt), str(price.completion)),
    )


def usage(session: Session, month: str, tenant: str | None = None) -> list[Usage]:
    """What each tenant was billed for in a month, by name."""
    where, parameters = (" AND tenant = ?", (month, tenant)) if tenant is not None else ("", (month,))
    rows = session.execute(
        "SELECT tenant, month, count(*), CAST(sum(prompt_tokens) AS BIGINT), CAST(sum(completion_tokens) AS BIGINT), "
        "CAST(sum(nanos) AS BIGINT), sum(CASE WHEN settled = 'reservation' THEN 1 ELSE 0 END) "
        f"FROM meter WHERE month = ?{where} GROUP BY tenant, month ORDER BY tenant",
        parameters,
    )
    return [Usage(*row) for row in rows]


def metered(session: Session, after: int, limit: int, month: str | None, tenant: str | None) -> list[MeterRow]:
    """Billed answers in the order in which they were written, after a sequence number."""
    where, parameters = "sequence > ?", [after]
    for column, value in (("month", month), ("tenant", tenant)):
        if value is not None:
            where += f" AND {column} = ?"
            parameters.append(value)  # type: ignore[arg-type]
    rows = session.execute(f"SELECT {_METER} FROM meter WHERE {where} ORDER BY sequence LIMIT ?", (*parameters, limit))
    return [MeterRow(*row) for row in rows]


def with_limits(found: Limits, given: Mapping[str, int | None]) -> Limits:
    """Limits with some of them changed. Raises `TenantError`."""
    return Limits(**{name: given.get(name, getattr(found, name)) for name in LIMITS})

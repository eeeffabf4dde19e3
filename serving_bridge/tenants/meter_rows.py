"""Answers as rows, inside a transaction: open ones, and billed ones, which only get more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from serving_bridge.database import Session
from serving_bridge.tenants.allowances import NOTHING, Amount, add_spent
from serving_bridge.tenants.journal import Began, Ended
from serving_bridge.tenants.records import DEPLOYMENT, tenant_scope

_OPEN = "response_id, gateway, tenant, key_id, model, month, prompt_tokens, completion_tokens, nanos, began_s"
_METER = "response_id, tenant, key_id, model, month, prompt_tokens, completion_tokens, nanos, settled, began_s"

Bill = tuple[Began, Ended]
#: Response ids by (scope, month).
BilledIds = Mapping[tuple[str, str], Sequence[str]]


def at_reservation(began: Began) -> Ended:
    """The end of an answer that never told its usage."""
    return Ended(began.response_id, began.prompt_tokens, began.completion_tokens, began.nanos, "reservation")


def write_open(session: Session, gateway: str, answers: Iterable[Began]) -> None:
    """Writes answers that have begun, so that another gateway settles them if this host is lost."""
    session.executemany(
        f"INSERT INTO open_answers ({_OPEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                began.response_id,
                gateway,
                began.tenant,
                began.key_id,
                began.model,
                began.month,
                began.prompt_tokens,
                began.completion_tokens,
                began.nanos,
                began.began_s,
            )
            for began in answers
        ],
    )


def write_bills(session: Session, bills: Sequence[Bill]) -> None:
    """Bills answers; one that was billed before stays as it was, and is not added to the sums again."""
    session.executemany("DELETE FROM open_answers WHERE response_id = ?", [(began.response_id,) for began, _ in bills])
    new = session.executemany(
        f"INSERT INTO meter ({_METER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING "
        "RETURNING response_id",
        [
            (
                began.response_id,
                began.tenant,
                began.key_id,
                began.model,
                began.month,
                ended.prompt_tokens,
                ended.completion_tokens,
                ended.nanos,
                ended.settled,
                began.began_s,
            )
            for began, ended in bills
        ],
    )
    ids = {response_id for (response_id,) in new}
    sums = spent_by_scope([bill for bill in bills if bill[0].response_id in ids])
    for (scope, month), amount in sorted(sums.items()):
        add_spent(session, scope, month, amount)


def spent_by_scope(bills: Iterable[Bill]) -> Mapping[tuple[str, str], Amount]:
    """Sums of bills by (scope, month): the tenants', and the deployment's."""
    sums: dict[tuple[str, str], Amount] = defaultdict(lambda: NOTHING)
    for began, ended in bills:
        amount = Amount(ended.prompt_tokens + ended.completion_tokens, ended.nanos)
        for scope in (tenant_scope(began.tenant), DEPLOYMENT):
            sums[scope, began.month] += amount
    return sums


def ids_by_scope(bills: Iterable[Bill]) -> BilledIds:
    """The answers that are billed, for each scope and month whose budget they are held of."""
    ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for began, _ in bills:
        for scope in (tenant_scope(began.tenant), DEPLOYMENT):
            ids[scope, began.month].append(began.response_id)
    return ids


def orphans(session: Session) -> list[str]:
    """Gateways that are gone and left open answers or amounts of budgets behind."""
    rows = session.execute(
        "SELECT gateway FROM open_answers WHERE gateway NOT IN (SELECT gateway FROM gateways) "
        "UNION SELECT gateway FROM allowances WHERE gateway NOT IN (SELECT gateway FROM gateways)"
    )
    return [gateway for (gateway,) in rows]


def left_open(session: Session, gateway: str) -> list[Began]:
    """The open answers of a gateway."""
    columns = ", ".join(Began.__struct_fields__)
    rows = session.execute(f"SELECT {columns} FROM open_answers WHERE gateway = ?", (gateway,))
    return [Began(*row) for row in rows]

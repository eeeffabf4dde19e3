"""What must hold of a deployment's limits and bills, whatever went wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from serving_bridge.tenants import MeterRow
from tools.testing.tenants.gateways import DEPLOYMENT, LARGEST, LIMITS, POLICY, Admitted, Deployment

#: Of a budget on which a gateway begins; see `serving_bridge.tenants.allowances`.
_CREDIT = 32
_MINUTE_S = 60.0


def violations(deployment: Deployment, rows: Sequence[MeterRow]) -> list[str]:
    """What does not hold; rows are all bills once everything has been written."""
    return [*billing(deployment, rows), *budgets(deployment, rows), *rates(deployment), *concurrency(deployment)]


def billing(deployment: Deployment, rows: Sequence[MeterRow]) -> list[str]:
    """Every answer is billed once: as it was settled, or as reserved where nobody could know better."""
    found = []
    billed: dict[str, MeterRow] = {}
    for row in rows:
        if row.response_id in billed:
            found.append(f"{row.response_id} is billed twice")
        billed[row.response_id] = row
    for answer in deployment.admitted.values():
        if answer.response_id not in billed:
            if not answer.cancelled:
                found.append(f"{answer.response_id} is not billed")
            continue
        row = billed.pop(answer.response_id)
        used = (row.prompt_tokens, row.completion_tokens)
        reserved = (answer.prompt_tokens, answer.completion_tokens)
        if row.tenant != answer.tenant:
            found.append(f"{answer.response_id} of {answer.tenant} is billed to {row.tenant}")
        if row.settled == "reservation" and used != reserved:
            found.append(f"{answer.response_id} is billed {used}, was reserved {reserved}")
        if row.settled == "usage" and used != ((0, 0) if answer.cancelled else answer.usage):
            found.append(f"{answer.response_id} is billed {used}, used {answer.usage}, cancelled {answer.cancelled}")
    found += [f"{response_id} is billed and was never admitted" for response_id in billed]
    return found


def budgets(deployment: Deployment, rows: Sequence[MeterRow]) -> list[str]:
    """The sums in the database are those of the bills, and within budget and credit."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        for scope in (f"tenant:{row.tenant}", "deployment"):
            sums[scope, row.month][0] += row.prompt_tokens + row.completion_tokens
            sums[scope, row.month][1] += row.nanos
    stored = deployment.database.read(
        lambda session: session.execute("SELECT scope, month, tokens, nanos FROM budgets WHERE tokens > 0 OR nanos > 0")
    )
    found = [
        f"{scope} in {month}: the sum is {tokens, nanos}, of the bills {tuple(sums[scope, month])}"
        for scope, month, tokens, nanos in stored
        if [tokens, nanos] != sums[scope, month]
    ]
    found += [f"{key} has no sum" for key in sums if key not in {(row[0], row[1]) for row in stored} and any(sums[key])]
    limits = LIMITS["budget"]
    for (scope, month), spent in sums.items():
        if scope == "tenant:budget":
            for limit, amount in zip((limits["month_tokens"], limits["month_nanos"]), spent, strict=True):
                bound = (limit or 0) + deployment.processes * ((limit or 0) // _CREDIT)
                if amount > bound:
                    found.append(f"{scope} in {month}: spent {amount}, bound {bound}")
    return found


def rates(deployment: Deployment) -> list[str]:
    """In every window that begins with a request, charges are within the bound of `serving_bridge.tenants.slices`."""
    found = []
    for scope, limits in (*LIMITS.items(), ("deployment", DEPLOYMENT)):
        answers = [answer for answer in deployment.admitted.values() if scope in (answer.tenant, "deployment")]
        answers.sort(key=lambda answer: answer.began_s)
        if (per_minute := limits.get("requests_per_minute")) is not None:
            charges = [(answer, 0 if answer.cancelled else 1, 1) for answer in answers]
            found += _windows(deployment, f"{scope} requests", charges, per_minute, per_minute, 1)
        if (per_minute := limits.get("tokens_per_minute")) is not None:
            tokens = [(answer, charged(answer), answer.reserved) for answer in answers]
            burst = limits.get("token_burst") or per_minute
            found += _windows(deployment, f"{scope} tokens", tokens, per_minute, burst, LARGEST)
    return found


def charged(answer: Admitted) -> int:
    """Tokens that an answer took of its limits."""
    if answer.cancelled:
        return 0
    return answer.reserved if answer.usage is None else sum(answer.usage)


def _windows(
    deployment: Deployment,
    what: str,
    charges: Sequence[tuple[Admitted, int, int]],
    per_minute: int,
    burst: int,
    largest: int,
) -> list[str]:
    policy = POLICY.slices
    beyond = 1 + deployment.cut_offs * policy.cut_off_share
    debt = deployment.processes * max(policy.credit * burst, largest)
    for first in range(0, len(charges), 7):
        start_s = charges[first][0].began_s
        refunds = sum(
            reserved - charge
            for answer, charge, reserved in charges[:first]
            if answer.ended_s is None or answer.ended_s >= start_s
        )
        total = 0
        for answer, charge, _ in charges[first:]:
            total += charge
            elapsed_s = answer.began_s - start_s
            bound = (burst + per_minute / _MINUTE_S * elapsed_s) * beyond + debt + refunds
            if total > bound + 1e-6:
                return [f"{what}: {total} in {elapsed_s:.3f} s from {start_s:.3f} s on, bound {bound:.1f}"]
    return []


def concurrency(deployment: Deployment) -> list[str]:
    """Never more answers at the same time than the limit allows, with what gateways may run on credit."""
    found = []
    policy = POLICY.slices
    for scope, limits in (*LIMITS.items(), ("deployment", DEPLOYMENT)):
        limit = limits.get("concurrency")
        if limit is None:
            continue
        beyond = 1 + deployment.cut_offs * policy.cut_off_share
        bound = limit * beyond + deployment.processes * max(policy.credit * limit, 1)
        if deployment.most_running[scope] > bound:
            found.append(f"{scope}: {deployment.most_running[scope]} answers at once, bound {bound:.1f}")
    return found

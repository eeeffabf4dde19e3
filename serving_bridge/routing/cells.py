"""Which cell answers a tenant's request: its home, or where that can't, another of its cells that has room.

A cell is a region's gateways with their fleet and their database; cells share nothing. A tenant has an order of cells
and its first is its home. Nothing of a tenant goes to a cell outside its order. So a tenant that is bound to a place
has only cells of that place in it.

Conversations spill, not requests: each has a point between 0 and 1, and leaves home while the spilled share is above
it. A cell's prefix caches so keep the conversations that they know. The cell of a spilled conversation is found by
rendezvous hashing (Thaler and Ravishankar, 1996): a lost cell's load is spread over all others of the order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass

from serving_bridge.routing.points import point_of

#: answers that say: this cell can't, another may. A limit that is reached is none of them.
_ELSEWHERE = frozenset({"overloaded", "queue_full"})


@dataclass(frozen=True)
class CellState:
    """What a cell last told of itself.

    Attributes:
      told_s: when, by the reader's monotonic clock.
      is_ready: whether it has a gateway that knows its keys and a replica that takes requests.
      kv_usage: mean share of its KV caches in use, 0 to 1.
      queue_s: mean time that requests wait in its engines.
    """

    told_s: float
    is_ready: bool
    kv_usage: float
    queue_s: float


@dataclass(frozen=True)
class SpillPolicy:
    """When conversations leave home, and where they may go.

    Attributes:
      stale_s: a cell that told nothing for so long counts as lost.
      from_kv, full_kv: no conversation spills below the first, all do from the second on; the share grows evenly.
      from_queue_s, full_queue_s: the same by time in the engines' queues; the larger share counts.
      lend_kv, lend_queue_s: a cell below both takes spilled conversations while their home is alive.
    """

    stale_s: float = 5.0
    from_kv: float = 0.80
    full_kv: float = 0.95
    from_queue_s: float = 1.0
    full_queue_s: float = 10.0
    lend_kv: float = 0.78
    lend_queue_s: float = 0.5

    def share(self, state: CellState) -> float:
        """The share of a cell's conversations that should leave it, 0 to 1."""
        by_kv = (state.kv_usage - self.from_kv) / (self.full_kv - self.from_kv)
        by_queue = (state.queue_s - self.from_queue_s) / (self.full_queue_s - self.from_queue_s)
        return min(1.0, max(0.0, by_kv, by_queue))

    def lends(self, state: CellState) -> bool:
        """Whether a cell has room for conversations of others."""
        return state.kv_usage < self.lend_kv and state.queue_s < self.lend_queue_s


def cells_of(
    tenant: str, home: str, cells: Collection[str], *, alternates: int = 2, bound_to: Collection[str] | None = None
) -> tuple[str, ...]:
    """A tenant's cells: its home, then at most so many others, by rendezvous hashing.

    Args:
      bound_to: cells in which the tenant's data may be; None for all.

    Raises:
      ValueError: home is no cell, or lies outside of what the tenant is bound to.
    """
    allowed = set(cells if bound_to is None else bound_to) & set(cells)
    if home not in allowed:
        raise ValueError(
            f"home {home!r} of tenant {tenant!r}: expected one of {', '.join(sorted(allowed)) or 'no cell'}; "
            f"change the home, or what the tenant is bound to"
        )
    others = sorted(allowed - {home}, key=lambda cell: point_of(f"{tenant}\0{cell}"))
    return (home, *others[:alternates])


def limit_shares(order: Sequence[str]) -> dict[str, float]:
    """The part of a tenant's limits that each of its cells holds: all of it at home, even parts in the others.

    Cells have no common database. So a tenant that uses all its cells at once gets the sum, 2 where there are others.
    When home is lost the others together hold what home held.
    """
    home, *others = order
    return {home: 1.0, **dict.fromkeys(others, 1.0 / max(1, len(others)))}


def choose_cell(
    order: Sequence[str],
    conversation: str,
    states: Mapping[str, CellState],
    now_s: float,
    *,
    avoid: Set[str] = frozenset(),
    policy: SpillPolicy | None = None,
) -> str | None:
    """The cell for a conversation of a tenant, or None where none of the tenant's cells can answer.

    Args:
      order: the tenant's cells, home first; no other is ever returned.
      states: what cells told last.
      avoid: cells that this request has tried.
    """
    policy = SpillPolicy() if policy is None else policy
    alive = {
        cell: state
        for cell in order
        if cell not in avoid
        and (state := states.get(cell)) is not None
        and state.is_ready
        and now_s - state.told_s <= policy.stale_s
    }
    if not alive:
        return None
    home = order[0]
    others = sorted((cell for cell in alive if cell != home), key=lambda cell: point_of(f"{cell}\0{conversation}"))
    lenders = [cell for cell in others if policy.lends(alive[cell])]
    if home in alive and (not lenders or point_of(conversation) >= policy.share(alive[home])):
        return home
    if lenders:
        return lenders[0]
    return min(others, key=lambda cell: (alive[cell].kv_usage, alive[cell].queue_s))


def may_try_another(status: int | None, code: str | None) -> bool:
    """Whether a request that got this answer, and no token, may go to another of its tenant's cells.

    Args:
      status: of HTTP; None where the cell did not answer.
      code: of the error's body.
    """
    return status is None or status == 503 or (status == 429 and code in _ELSEWHERE)

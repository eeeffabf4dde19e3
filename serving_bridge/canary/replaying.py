"""Computes the stored decisions of a rollout again."""

from __future__ import annotations

from collections.abc import Sequence

from serving_bridge.canary.looks import State
from serving_bridge.canary.machine import decide
from serving_bridge.canary.rollouts import Decided, Rollout


def replay(rollout: Rollout, decisions: Sequence[Decided]) -> list[str]:
    """Where the decisions of a rollout come out in another way than they were stored; nothing if they all agree."""
    state, differences = State(until=rollout.first), list[str]()
    for number, decided in enumerate(decisions, 1):
        if decided.look != number:
            return [*differences, f"decision {number} is missing: the next one is {decided.look}"]
        state, decision = decide(rollout.policy, state, decided.record.look)
        stored = decided.record.decision
        if decision != stored:
            differences.append(
                f"decision {number} comes out as {decision.verdict} ({'; '.join(decision.reasons)}), stored is "
                f"{stored.verdict} ({'; '.join(stored.reasons)})"
            )
    if not differences and state != rollout.state:
        differences.append("the state after the last decision is another one than the stored")
    return differences

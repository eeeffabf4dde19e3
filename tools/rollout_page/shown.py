"""What the page shows of a namespace, as plain values."""

from __future__ import annotations

from typing import Any

import msgspec

from serving_bridge.canary import Decided, Place, Rollout
from serving_bridge.registry import Standing

_ENTRIES, _ROLLOUTS, _LOOKS = 30, 20, 60


def page_data(place: Place, *, can_act: bool) -> dict[str, Any]:
    """Versions, traffic, rollouts and the newest decision of a namespace.

    Args:
      can_act: whether the page has buttons.
    """
    namespace, aliases = place.namespace, place.index.aliases
    placement = aliases.placement(namespace)
    traffic = placement.traffic
    holder = aliases.holder(namespace)
    rollouts = place.rollouts.latest(namespace, limit=_ROLLOUTS)
    decisions = place.rollouts.decisions(rollouts[0].rollout, limit=_LOOKS) if rollouts else []
    return {
        "namespace": namespace,
        "can_act": can_act,
        "controller": None if holder is None else holder.holder,
        "traffic": {"canary": traffic.canary_share, "shadow": traffic.shadow_share, "said": traffic.told()},
        "aliases": {alias: placed.number for alias, placed in placement.aliases.items()},
        "entries": [_entry(standing) for standing in place.index.entries(namespace, limit=_ENTRIES)],
        "rollouts": [_rollout(one) for one in rollouts],
        "looks": [_look(one) for one in decisions],
        "decision": None if not decisions else msgspec.to_builtins(decisions[-1].record.decision),
    }


def _entry(standing: Standing) -> dict[str, Any]:
    entry = standing.entry
    return {
        "number": entry.number,
        "parent": entry.parent,
        "stage": standing.stage,
        "aliases": list(standing.aliases),
        "run": entry.origin.run,
        "step": entry.origin.step,
        "note": entry.note,
        "created_s": entry.created_s,
    }


def _rollout(one: Rollout) -> dict[str, Any]:
    return {
        "rollout": one.rollout,
        "entry": one.number,
        "stable": one.stable,
        "phase": one.phase,
        "asked": one.asked,
        "step": one.policy.steps[one.state.step].name,
        "steps": [step.name for step in one.policy.steps],
        "looks": one.looks,
        "reason": one.reason,
        "actor": one.actor,
        "created_s": one.created_s,
    }


def _look(decided: Decided) -> dict[str, Any]:
    canary, stable = decided.record.look.answers
    verdict = decided.record.decision.verdict
    return {"look": decided.look, "at_s": decided.created_s, "canary": canary, "stable": stable, "verdict": verdict}

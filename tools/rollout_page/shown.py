"""What the page shows of a namespace, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from serving_bridge.canary import Decided, Place, Rollout
from serving_bridge.registry import Standing
from tools.rollout_page.drift import Drift

_ENTRIES, _ROLLOUTS, _LOOKS = 30, 20, 60


def page_data(place: Place, drift: Drift, *, can_act: bool) -> dict[str, Any]:
    """Versions, traffic, rollouts, the newest decision, who waits, and what stable's answers were of late.

    Args:
      can_act: whether the page has buttons.
    """
    namespace, aliases = place.namespace, place.index.aliases
    placement = aliases.placement(namespace)
    traffic = placement.traffic
    holder = aliases.holder(namespace)
    rollouts = place.rollouts.latest(namespace, limit=_ROLLOUTS)
    decisions = place.rollouts.decisions(rollouts[0].rollout, limit=_LOOKS) if rollouts else []
    entries = place.index.entries(namespace, limit=_ENTRIES)
    return {
        "namespace": namespace,
        "can_act": can_act,
        "controller": None if holder is None else holder.holder,
        "traffic": {"canary": traffic.canary_share, "shadow": traffic.shadow_share, "said": traffic.told()},
        "aliases": {alias: placed.number for alias, placed in placement.aliases.items()},
        "entries": [_entry(standing) for standing in entries],
        "rollouts": [_rollout(one) for one in rollouts],
        "looks": [_look(one) for one in decisions],
        "waits": _waits(namespace, rollouts, decisions, entries, has_controller=holder is not None),
        "drift": drift.shown(),
        "decision": None if not decisions else msgspec.to_builtins(decisions[-1].record.decision),
    }


def _waits(
    namespace: str,
    rollouts: list[Rollout],
    decisions: list[Decided],
    entries: Sequence[Standing],
    *,
    has_controller: bool,
) -> list[dict[str, str]]:
    """Who waits, and for what; of a rollout also what its step lacks."""
    found = []
    newest = rollouts[0] if rollouts else None
    if newest is not None and newest.is_open:
        name = f"rollout {newest.rollout}"
        if not has_controller:
            found.append({"who": name, "what": "waits for a controller: tools.canary run"})
        if newest.asked:
            found.append({"who": name, "what": f"waits for the controller, to {newest.asked} it"})
        if decisions:
            found += [{"who": name, "what": reason} for reason in decisions[-1].record.decision.reasons[:5]]
        else:
            found.append({"who": name, "what": "waits for its first look"})
    if newest is not None and newest.holds_training:
        found.append({"who": f"training of {namespace}", "what": "waits for tools.canary release"})
    told = {"candidate": "waits for the evaluation gate: tools.gate", "passed": "waits for tools.canary start"}
    found += [
        {"who": f"entry {one.entry.number}", "what": told[one.stage]}
        for one in entries[:10]
        if one.stage in told and not one.aliases
    ]
    return found


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

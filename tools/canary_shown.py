"""How `tools.canary` shows rollouts, decisions, and what would happen."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import tomli_w
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving_bridge.canary import CanaryPolicy, Decided, Decision, Finding, Place, Rollout, next_decision
from tools.command_line import print_page
from tools.registry_shown import when
from tools.reporting import terminal

#: tenants' findings that are shown beside those of all tenants: the worst ones
_TENANTS = 5


def print_status(place: Place, console: Console, *, as_json: bool) -> None:
    """The newest rollout: where it stands and why."""
    newest = place.rollouts.latest(place.namespace)
    if as_json:
        terminal.print_json(_fields(newest[0]) if newest else None)
        return
    if not newest:
        console.print(f"{escape(place.namespace)} has had no rollout yet")
        return
    rollout = newest[0]
    console.print(_line(rollout), soft_wrap=True)
    split = place.index.aliases.traffic(place.namespace)
    console.print(f"traffic: {escape(split.told())}", soft_wrap=True)
    decisions = place.rollouts.decisions(rollout.rollout, limit=1)
    if decisions:
        _print_decision(decisions[-1].record.decision, console)
    holder = place.index.aliases.holder(place.namespace)
    console.print(f"controller: {escape(holder.holder) if holder else 'none is at work'}", soft_wrap=True)


def print_rollouts(place: Place, console: Console, *, limit: int, as_json: bool) -> None:
    """The newest rollouts, newest first."""
    found = place.rollouts.latest(place.namespace, limit=limit)
    if as_json:
        terminal.print_json([_fields(one) for one in found])
        return
    table = Table("rollout", "began", "entry", "against", "step", "phase", "looks", "by", "reason", box=None)
    for one in found:
        step = one.policy.steps[one.state.step].name
        numbers = (str(one.number), str(one.stable))
        row = (str(one.rollout), when(one.created_s), *numbers, step, one.phase, str(one.looks))
        table.add_row(*row, escape(one.actor), escape(one.reason))
    console.print(table)


def print_decisions(place: Place, rollout: Rollout, console: Console, *, limit: int, as_json: bool) -> None:
    """The newest decisions of a rollout, oldest first."""
    found = place.rollouts.decisions(rollout.rollout, limit=limit)
    if as_json:
        terminal.print_json([_decision_fields(one) for one in found])
        return
    table = Table("look", "when", "step", "answers", "verdict", "why", box=None)
    for one in found:
        canary, stable = one.record.look.answers
        why = "; ".join(one.record.decision.reasons[:3])
        step = rollout.policy.steps[one.step].name
        row = (str(one.look), when(one.created_s), step, f"{canary}/{stable}", one.record.decision.verdict)
        table.add_row(*row, escape(why))
    console.print(table)


def print_dry_run(place: Place, console: Console) -> None:
    """What the next look of the open rollout would decide by what is there now; nothing changes."""
    rollout = place.rollouts.open_one(place.namespace)
    if rollout is None:
        console.print(f"{escape(place.namespace)} has no rollout under way: name an entry to see what start would do")
        return
    _print_decision(next_decision(place, rollout), console)


def print_plan(place: Place, number: int, policy: CanaryPolicy, console: Console) -> int:
    """What `start` would do with an entry; exit status 1 if it would be refused."""
    table = Table("step", "traffic", "conversations", "at least", "must be shown", box=None)
    for step in policy.steps:
        share = policy.share_of(step) * step.traffic_share
        traffic = f"{share:.4g}" if step.share else f"copies of {step.shadow:.4g}"
        table.add_row(escape(step.name), traffic, str(step.min_samples), f"{step.min_time_s:.0f} s", step.proof)
    console.print(table)
    hours = sum(step.min_time_s for step in policy.steps) / 3600
    console.print(f"at least {hours:.1f} hours; a look every {policy.interval_s:g} s; metrics:")
    metrics = Table("metric", "role", "margin", "worse", "coverage", box=None)
    for metric in policy.metrics:
        worse = metric.worse or metric.measure.worse
        metrics.add_row(metric.name, metric.role, f"{metric.margin:g}", worse, f"{metric.coverage:g}")
    console.print(metrics)
    standing = place.index.standing(place.namespace, number)
    problems = list(place.problems(number)) if standing.has_weights else ["its weights were removed"]
    if standing.stage in ("candidate", "rejected", "rolled_back"):
        problems.append(f"it is {standing.stage}; expected passed")
    if place.index.aliases.current(place.namespace).get("stable") in (None, number):
        problems.append("there is no other entry that is stable")
    if (other := place.rollouts.open_one(place.namespace)) is not None:
        problems.append(f"rollout {other.rollout} is under way")
    for problem in problems:
        console.print(f"[red]entry {number} can't be started: {escape(problem)}[/]", soft_wrap=True)
    return 1 if problems else 0


def print_policy() -> None:
    """The default policy as TOML."""
    print_page(tomli_w.dumps({"canary": CanaryPolicy().model_dump(mode="json", exclude_none=True)}))


def _print_decision(decision: Decision, console: Console) -> None:
    console.print(f"verdict: {decision.verdict}")
    for reason in decision.reasons[:10]:
        console.print(f"  {reason}", markup=False, soft_wrap=True)
    table = Table("metric", "tenant", "values", "worse by at least", "at most", "margin", "", box=None)
    for finding in _shown(decision.findings):
        state = "worse" if finding.is_worse else "harmless" if finding.is_harmless else ""
        name = finding.metric if finding.direction > 0 else f"{finding.metric} (less)"
        values = f"{finding.n_canary:.0f}/{finding.n_stable:.0f}"
        bounds = (f"{finding.at_least:+.4f}", f"{finding.at_most:+.4f}", f"{finding.margin:g}")
        table.add_row(escape(name), escape(finding.tenant or "all"), values, *bounds, state)
    console.print(table)


def _shown(findings: list[Finding]) -> list[Finding]:
    """All tenants together, and the tenants that look worst."""
    pooled = [finding for finding in findings if not finding.tenant]
    single = [finding for finding in findings if finding.tenant]
    return pooled + sorted(single, key=lambda one: one.margin - one.at_least)[:_TENANTS]


def _line(rollout: Rollout) -> str:
    step = rollout.policy.steps[rollout.state.step]
    spent = time.strftime("%H:%M:%S", time.gmtime(rollout.state.spent_s))
    return (
        f"rollout {rollout.rollout}: entry {rollout.number} against {rollout.stable}, {rollout.phase} at step "
        f"{step.name} for {spent}, {rollout.looks} looks; {escape(rollout.reason)}"
    )


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {
        "rollout": rollout.rollout,
        "namespace": rollout.namespace,
        "entry": rollout.number,
        "stable": rollout.stable,
        "phase": rollout.phase,
        "step": rollout.policy.steps[rollout.state.step].name,
        "looks": rollout.looks,
        "reason": rollout.reason,
        "actor": rollout.actor,
        "created_s": rollout.created_s,
        "looked_s": rollout.looked_s,
    }


def _decision_fields(decided: Decided) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(decided.record)
    return {"look_number": decided.look, "step": decided.step, "created_s": decided.created_s, **fields}

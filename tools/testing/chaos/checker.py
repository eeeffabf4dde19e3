"""What must hold of a finished job whatever went wrong in it: nothing lost, nothing trained twice, nothing too stale.

A life of the learner goes on from a checkpoint, with what that checkpoint holds: the history that survives is that of
the last life, of what it began from, and so on, whoever lived in between. Not seen: an answer that was damaged on its
way without being noticed.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from tools.testing.chaos.history import Begun, Committed, Consumed, History, Rival, RivalEnded, Saved, WentBack

_SHOWN = 5
#: standard errors by which held-out accuracies may differ; both are estimates, and so is what is learned by chance
_SIGMAS = 4.0


@dataclass
class _Survivors:
    """Steps that count, as the entries are gone through."""

    steps: dict[int, Consumed] = field(default_factory=dict)
    #: of each life; `steps` are those of the life that began last
    steps_of: dict[int, dict[int, Consumed]] = field(default_factory=dict)
    #: groups of steps that were given up by going back to an older checkpoint on purpose
    forsaken: set[str] = field(default_factory=set)
    #: what the checkpoint of a step holds
    saved: dict[int, dict[int, Consumed]] = field(default_factory=dict)
    committed: int = 0
    #: while two learners run, one may begin before a commit of the other
    rival_runs: bool = False
    #: lives that a second learner brings about: its own, and that of the one that takes over from it
    takeovers: int = 0
    problems: list[str] = field(default_factory=list)


def check(history: History) -> list[str]:
    """Everything that is wrong, in words; empty if nothing is."""
    survivors = _walk(history)
    return [
        *survivors.problems,
        *_check_steps(history, survivors),
        *_check_versions(history),
        *_check_acknowledged(history, survivors),
        *_check_prompts(history, survivors),
    ]


def _walk(history: History) -> _Survivors:
    state = _Survivors()
    for entry in history.entries:
        match entry:
            case Begun(step, life):
                if step < state.committed and not (state.rival_runs or state.takeovers):
                    state.problems.append(
                        f"a life began after step {step}, although step {state.committed} was committed before"
                    )
                kept = {n: consumed for n, consumed in state.steps.items() if n <= step}
                state.steps = state.steps_of[life] = dict(state.saved.get(step, kept))
                state.committed, state.takeovers = step, max(0, state.takeovers - 1)
            case Saved(step, life):
                state.saved[step] = dict(state.steps_of.get(life, {}))
            case Rival():
                state.rival_runs, state.takeovers = True, 2
            case RivalEnded():
                state.rival_runs = False
            case Committed(step):
                state.committed = max(state.committed, step)
            case WentBack(step):
                state.forsaken |= {g for n, consumed in state.steps.items() if n > step for g in consumed.groups}
                state.committed = step
            case Consumed(step=step):
                _consume(history, state, entry)
    return state


def _consume(history: History, state: _Survivors, entry: Consumed) -> None:
    step, steps = entry.step, state.steps_of.setdefault(entry.life, {})
    if step - 1 and step - 1 not in steps:
        state.problems.append(f"step {step} follows no step {step - 1}")
    if step in steps:
        state.problems.append(f"step {step} was made twice in one history")
    before = {group for n, consumed in steps.items() if n != step for group in consumed.groups}
    twice = [group for group, count in Counter(entry.groups).items() if count > 1 or group in before]
    if twice:
        state.problems.append(f"trained on twice, again in step {step}: {_some(twice)}")
    if forsaken := state.forsaken.intersection(entry.groups):
        # They were not acknowledged yet when the checkpoint was put aside, and came back.
        state.forsaken -= forsaken
    if len(entry.groups) != history.groups_per_step:
        state.problems.append(f"step {step} had {len(entry.groups)} groups, expected {history.groups_per_step}")
    for group, oldest in zip(entry.groups, entry.oldest, strict=True):
        if entry.version - oldest > history.max_staleness:
            state.problems.append(
                f"step {step} trained version {entry.version} on {group}, whose oldest token is of version {oldest}: "
                f"more than {history.max_staleness} behind"
            )
    steps[step] = entry


def _check_steps(history: History, survivors: _Survivors) -> list[str]:
    problems = []
    missing = sorted(set(range(1, history.total_steps + 1)) - survivors.steps.keys())
    if missing:
        problems.append(f"the surviving history lacks steps {_some(missing)} of {history.total_steps}")
    if not history.ledger.finished:
        problems.append("the run did not finish: nobody told the rollout workers so")
    return problems


def _check_versions(history: History) -> list[str]:
    problems = []
    versions = [entry.version for entry in history.entries if isinstance(entry, Consumed)]
    for before, after in itertools.pairwise(versions):
        if after <= before:
            problems.append(f"policy version {after} was trained after version {before}: versions only go up")
    repeated = [version for version, count in Counter(history.published).items() if count > 1]
    if repeated:
        problems.append(f"policy versions were stored more than once: {_some(repeated)}")
    return problems


def _check_acknowledged(history: History, survivors: _Survivors) -> list[str]:
    """Acknowledged is what the surviving history holds, and nothing else."""
    consumed = {group for entry in survivors.steps.values() for group in entry.groups}
    states = history.ledger.groups
    problems = []
    lost = [g for g, state in states.items() if state == "acknowledged" and g not in consumed | survivors.forsaken]
    if lost:
        problems.append(f"acknowledged, but in no step that survived: {_some(lost)}")
    unfinished = [g for g in consumed if states.get(g, "acknowledged") != "acknowledged"]
    if unfinished:
        problems.append(f"trained on, but {states[unfinished[0]]} in the queue at the end: {_some(unfinished)}")
    gone = history.ledger.removed["acknowledged"]
    total = gone + sum(state == "acknowledged" for state in states.values())
    if not len(consumed) <= total <= len(consumed | survivors.forsaken):
        most = len(consumed | survivors.forsaken)
        problems.append(
            f"{total} groups were acknowledged, expected the {len(consumed)} to {most} that were trained on"
        )
    return problems


def _check_prompts(history: History, survivors: _Survivors) -> list[str]:
    """Every prompt that was given out ended somewhere: trained on, dropped, given up, or still on its way."""
    ledger = history.ledger
    named = {g for entry in survivors.steps.values() for g in entry.groups} | survivors.forsaken | ledger.groups.keys()
    prefix = f"{history.run}/"
    known = {int(group.removeprefix(prefix)) for group in named} | ledger.claimed | history.given_up
    unknown = [index for index in range(ledger.next_prompt) if index not in known]
    documented = ledger.removed["dropped"] + ledger.removed["dead"]
    if len(unknown) > documented:
        return [f"prompts without an end: {_some(unknown)}, {len(unknown)} in all; {documented} were dropped"]
    beyond = [index for index in known if index >= ledger.next_prompt]
    return [f"prompts that were never given out: {_some(beyond)}"] if beyond else []


def check_accuracy(correct: int, clean: int, problems: int) -> list[str]:
    """Compares numbers of right answers to the same held-out problems, by the error of a difference of proportions."""
    mean = (correct + clean) / (2 * problems)
    error = math.sqrt(2 * mean * (1 - mean) / problems)
    if clean - correct > _SIGMAS * problems * error:
        return [
            f"held-out accuracy is {correct / problems:.1%}, that of a run without faults {clean / problems:.1%}; "
            f"expected a difference of at most {_SIGMAS * error:.1%} on {problems} problems"
        ]
    return []


def _some(items: list[str] | list[int]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"

"""The checker of the chaos harness accepts what may happen, and finds every doctored history."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.testing.chaos.checker import check, check_accuracy
from tools.testing.chaos.history import (
    Begun,
    Committed,
    Consumed,
    Entry,
    History,
    Ledger,
    Rival,
    RivalEnded,
    Saved,
    WentBack,
    entries,
)

GROUPS_PER_STEP = 2


def consumed(step: int, *, version: int | None = None, first: int | None = None, lag: int = 0) -> Consumed:
    """A step that trains version `version` on groups of consecutive prompts."""
    start = (step - 1) * GROUPS_PER_STEP if first is None else first
    version = step if version is None else version
    names = tuple(f"run/{index}" for index in range(start, start + GROUPS_PER_STEP))
    return Consumed(step, version, names, (version - lag,) * GROUPS_PER_STEP)


def history(*happened: Entry, ledger: Ledger | None = None, total_steps: int = 4) -> History:
    """Four steps, the second checkpointed, a kill after the third; the prompts of the steps are 0 to 7."""
    lived = happened or (
        Begun(0),
        consumed(1, version=1),
        consumed(2, version=2, lag=1),
        Committed(2),
        consumed(3, version=3, lag=2),
        Begun(2),
        consumed(3, version=4),
        consumed(4, version=5),
        Committed(4),
    )
    ended = {f"run/{index}": "acknowledged" for index in range(4, 8)}
    queue = Ledger(ended, {"acknowledged": 4, "dropped": 0, "dead": 0}, frozenset(), next_prompt=8, finished=True)
    return History("run", total_steps, 2, GROUPS_PER_STEP, lived, ledger or queue, published=(1, 2, 3, 4, 5))


def with_ledger(**changes: object) -> History:
    good = history()
    return replace(good, ledger=replace(good.ledger, **changes))  # type: ignore[arg-type]


def test_a_history_with_a_restart_is_accepted() -> None:
    assert check(history()) == []


def test_what_a_life_goes_on_from_is_what_its_checkpoint_holds_whoever_wrote_it() -> None:
    """The second life begins from step 1 and comes to step 2; the first saves its own step 2 meanwhile."""
    entries = [
        *(Begun(0, 1), replace(consumed(1), life=1), Saved(1, 1), Committed(1), replace(consumed(2), life=1)),
        *(Rival(), Begun(1, 2), Saved(2, 1), Committed(2), replace(consumed(2, version=5, first=8), life=2)),
        *(Begun(2, 3), replace(consumed(3, version=7), life=3), replace(consumed(4, version=8), life=3)),
    ]
    assert check(history(*entries)) == []
    late = [*entries[:5], Saved(2, 1), Committed(2), Begun(1, 2), *entries[9:]]
    assert any("a life began after step 1, although step 2 was committed" in found for found in check(history(*late)))


def test_the_learner_that_takes_over_from_a_second_one_may_begin_before_its_last_commit() -> None:
    """The second life lives on for long; the third reads step 1's checkpoint while that one commits step 2."""
    entries = [
        *(Begun(0, 1), replace(consumed(1), life=1), Saved(1, 1), Committed(1), Rival(), Begun(1, 2)),
        *(replace(consumed(2), life=2), Saved(2, 2), Committed(2), RivalEnded(), Begun(1, 3)),
        *(replace(consumed(2, version=5, first=8), life=3), replace(consumed(3, version=6), life=3)),
        *(Begun(2, 4), replace(consumed(3, version=7), life=4), replace(consumed(4, version=8), life=4)),
    ]
    assert check(history(*entries)) == []
    lost = [*entries[:11], replace(consumed(2, version=5), life=3), Saved(2, 3), Committed(2), Begun(1, 4)]
    assert any("a life began after step 1, although step 2 was committed" in found for found in check(history(*lost)))


DOCTORED: dict[str, tuple[History, str]] = {
    "a group in two steps": (
        history(Begun(0), consumed(1), consumed(2, first=1), consumed(3), consumed(4)),
        "trained on twice, again in step 2: run/1",
    ),
    "a restart after which a voided group comes beside a kept one": (
        history(Begun(0), consumed(1), consumed(2), Begun(1), consumed(2, version=9, first=0), consumed(3, version=10)),
        "trained on twice, again in step 2: run/0, run/1",
    ),
    "a step that was left out": (history(Begun(0), consumed(1), consumed(3), consumed(4)), "step 3 follows no step 2"),
    "a step made twice": (
        history(Begun(0), consumed(1), consumed(1, version=2, first=2), consumed(2, version=3, first=4)),
        "step 1 was made twice in one history",
    ),
    "the end is missing": (history(Begun(0), consumed(1), consumed(2), consumed(3)), "lacks steps 4 of 4"),
    "too stale": (history(Begun(0), consumed(1), consumed(2), consumed(3), consumed(4, lag=3)), "more than 2 behind"),
    "too few groups": (
        history(Begun(0), replace(consumed(1), groups=("run/0",), oldest=(1,)), consumed(2)),
        "step 1 had 1 groups, expected 2",
    ),
    "a committed checkpoint was lost": (
        history(Begun(0), consumed(1), consumed(2), Committed(2), Begun(0), consumed(1, version=8)),
        "a life began after step 0, although step 2 was committed before",
    ),
    "a version went down": (
        history(Begun(0), consumed(1, version=3), consumed(2, version=2)),
        "policy version 2 was trained after version 3",
    ),
    "a version was stored twice": (replace(history(), published=(1, 2, 2)), "stored more than once: 2"),
    "acknowledged before the commit, which was lost": (
        with_ledger(
            groups={**{f"run/{i}": "acknowledged" for i in range(4, 8)}, "run/8": "acknowledged"}, next_prompt=9
        ),
        "acknowledged, but in no step that survived: run/8",
    ),
    "acknowledged and forgotten, in no step": (
        with_ledger(removed={"acknowledged": 5, "dropped": 0, "dead": 0}),
        "9 groups were acknowledged, expected the 8 to 8",
    ),
    "trained on and never acknowledged": (
        with_ledger(removed={"acknowledged": 3, "dropped": 0, "dead": 0}),
        "7 groups were acknowledged, expected the 8 to 8",
    ),
    "trained on and not acknowledged": (
        with_ledger(groups={**{f"run/{i}": "acknowledged" for i in range(4, 7)}, "run/7": "ready"}),
        "trained on, but ready in the queue at the end: run/7",
    ),
    "a prompt that vanished": (with_ledger(next_prompt=9), "prompts without an end: 8, 1 in all; 0 were dropped"),
    "a prompt that nobody gave out": (with_ledger(next_prompt=7), "prompts that were never given out: 7"),
    "not finished": (with_ledger(finished=False), "the run did not finish"),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_history_is_found(name: str) -> None:
    doctored, problem = DOCTORED[name]
    assert any(problem in found for found in check(doctored)), check(doctored)


@pytest.mark.parametrize(
    "changes",
    [
        {"next_prompt": 9, "removed": {"acknowledged": 4, "dropped": 1, "dead": 0}},
        {"next_prompt": 9, "claimed": frozenset({8})},
        {"next_prompt": 9, "groups": {**{f"run/{i}": "acknowledged" for i in range(4, 8)}, "run/8": "dead"}},
    ],
)
def test_prompts_may_end_as_documented(changes: dict[str, object]) -> None:
    assert check(with_ledger(**changes)) == []
    assert check(replace(with_ledger(next_prompt=9), given_up=frozenset({8}))) == []


def test_going_back_on_purpose_gives_up_what_was_acknowledged() -> None:
    lived = [Begun(0), consumed(1), consumed(2), Committed(2), WentBack(0), Begun(0)]
    again = [consumed(step, version=step + 5, first=2 * step + 2) for step in range(1, 5)]
    ended = {f"run/{index}": "acknowledged" for index in range(12)}
    ledger = Ledger(ended, {"acknowledged": 0, "dropped": 0, "dead": 0}, frozenset(), next_prompt=12, finished=True)
    assert check(history(*lived, *again, ledger=ledger)) == []
    without = [entry for entry in lived if not isinstance(entry, WentBack)]
    assert any("acknowledged, but in no step" in problem for problem in check(history(*without, *again, ledger=ledger)))


def test_accuracy_is_compared_by_its_error() -> None:
    assert check_accuracy(85, 95, 100) == []
    assert check_accuracy(100, 50, 100) == []  # better is no fault
    assert "held-out accuracy is 60.0%" in check_accuracy(60, 95, 100)[0]


def test_lives_are_read_from_the_metrics() -> None:
    records = [
        {"event": "life", "step": 0, "life": 7},
        {"event": "consumed", "step": 1, "version": 1, "groups": ["run/0"], "oldest": [1], "life": 7},
        {"event": "saving", "step": 1, "life": 7},
        {"event": "fault", "name": "kill learner"},
        {"event": "fault", "name": "zombie learner"},
        {"event": "committed", "step": 1},
        {"event": "rival_ended"},
        {"event": "life", "step": 1, "life": 8},
        {"event": "way_back", "step": 0},
        {"event": "life", "step": 0, "life": 9},
    ]
    first = [Begun(0, 7), Consumed(1, 1, ("run/0",), (1,), 7), Saved(1, 7), Rival(), Committed(1), RivalEnded()]
    expected = [*first, Begun(1, 8), WentBack(0), Begun(0, 9)]
    assert entries(records) == expected

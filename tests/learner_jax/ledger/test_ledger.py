"""The ledger: which orders are legal, which are refused, and what it says of where a run stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from learner_jax.contracts.position import Position
from learner_jax.ledger.ledger import Ledger, LedgerError

SAVED = Position(4, 7, 9, ("run/3/0", "run/3/1"), 0.25, ((6, 3), (7, 4)), life=1)


def publish(ledger: Ledger) -> None:
    ledger.published(ledger.version + 1)


def train(ledger: Ledger) -> None:
    name = f"run/{ledger.completed_steps}"
    ledger.trained_on([f"{name}/0", f"{name}/1"])


def save(ledger: Ledger) -> None:
    ledger.save_started(ledger.position(prompt_cursor=5))


def acknowledge(ledger: Ledger) -> None:
    """What a checkpoint of one step holds."""
    ledger.acknowledged(("run/1",))


EVENTS: dict[str, Callable[[Ledger], object]] = {
    "begin": lambda ledger: ledger.begun(2),
    "begin 0": lambda ledger: ledger.begun(0),
    "resume": lambda ledger: ledger.resumed(SAVED),
    "resume own": lambda ledger: ledger.resumed(replace(SAVED, life=2)),
    "publish": publish,
    "publish same": lambda ledger: ledger.published(ledger.version),
    "publish older": lambda ledger: ledger.published(ledger.version - 1),
    "complete": lambda ledger: ledger.step_completed(),
    "train": train,
    "position": lambda ledger: ledger.position(prompt_cursor=5),
    "save": save,
    "save other": lambda ledger: ledger.save_started(replace(ledger.position(prompt_cursor=5), completed_steps=9)),
    "commit": lambda ledger: ledger.committed(),
    "acknowledge": acknowledge,
    "acknowledge other": lambda ledger: ledger.acknowledged(("run/2",)),
    "acknowledge nothing": lambda ledger: ledger.acknowledged(()),
}


def after(*events: str) -> Ledger:
    ledger = Ledger()
    for event in events:
        EVENTS[event](ledger)
    return ledger


BEGUN = ("begin", "publish")
STEP = ("complete", "publish", "train")

LEGAL = [
    (*BEGUN, "position"),
    ("begin", "resume", *BEGUN[1:], *STEP, "save"),
    (*BEGUN, "save", "commit", "acknowledge nothing", *STEP, "save", "commit", "acknowledge"),
    (*BEGUN, *STEP, "save", *STEP, *STEP, "commit", "position", "acknowledge", "save", "commit"),
    (*BEGUN, *STEP, "save", "complete", "commit", "acknowledge", "publish", "train", "save"),
    (*BEGUN, *STEP, "save", "commit", "complete", "publish", "acknowledge", "train"),
]

ILLEGAL = [
    (("begin",), "begin", "life 2 begins, and 2 has begun already"),
    ((), "begin 0", "expected 1 or above"),
    ((), "resume", "before the life has begun"),
    (("begin", "resume"), "resume", "after work has begun"),
    (BEGUN, "resume", "after work has begun"),
    ((*BEGUN, "complete"), "resume", "after work has begun"),
    (("begin",), "resume own", "life 2 resumes from what life 2 saved"),
    ((), "publish", "before the life has begun"),
    (BEGUN, "publish", "step 0 is version 0, and now 1"),
    (BEGUN, "publish same", "step 0 is version 0, and now 0"),
    ((*BEGUN, "complete"), "publish same", "version 0 is published after version 0"),
    ((*BEGUN, "complete"), "publish older", "version -1 is published after version 0"),
    (("begin",), "complete", "step 1 is completed before the parameters of step 0 are published"),
    ((*BEGUN, "complete"), "complete", "step 2 is completed before the parameters of step 1 are published"),
    ((*BEGUN, "complete", "publish"), "complete", "step 2 is completed before step 1 reports what it was trained on"),
    (BEGUN, "train", "step 0 reports its trajectories twice"),
    ((*BEGUN, "complete"), "train", "step 1 reports its trajectories before it is published"),
    ((*BEGUN, *STEP), "train", "step 1 reports its trajectories twice"),
    (("begin", "resume"), "position", "before the parameters of step 4 are published"),
    ((*BEGUN, "complete", "publish"), "position", "before step 1 reports what it was trained on"),
    ((*BEGUN, "complete"), "save", "before the parameters of step 1 are published"),
    ((*BEGUN, *STEP, "save"), "save", "step 1 is saved while another save is in flight"),
    ((*BEGUN, *STEP, "save", *STEP), "save", "step 2 is saved while another save is in flight"),
    ((*BEGUN, *STEP, "save", *STEP, "commit"), "save", "step 2 is saved before the save before it is acknowledged"),
    ((*BEGUN, *STEP, "save", "commit"), "save", "step 1 is saved before the save before it is acknowledged"),
    ((*BEGUN, *STEP, "save", "commit", "acknowledge"), "save", "step 1 is saved twice"),
    (("begin", "resume", "publish"), "save", "step 4 is saved twice"),
    ((*BEGUN, *STEP), "save other", "a position of step 9 is saved, and the ledger's is another"),
    ((*BEGUN, *STEP), "commit", "none is in flight"),
    ((*BEGUN, *STEP, "save", "commit"), "commit", "none is in flight"),
    ((*BEGUN, *STEP), "acknowledge", "1 groups are forgotten that no committed save holds"),
    ((*BEGUN, *STEP), "acknowledge nothing", "0 groups are forgotten that no committed save holds"),
    ((*BEGUN, *STEP, "save"), "acknowledge", "1 groups are forgotten that no committed save holds"),
    ((*BEGUN, *STEP, "save", *STEP, "commit"), "acknowledge other", "1 groups are forgotten that no committed save"),
    ((*BEGUN, *STEP, "save", "commit", "acknowledge"), "acknowledge", "1 groups are forgotten that no committed save"),
]


@pytest.mark.parametrize("events", LEGAL, ids=" ".join)
def test_an_order_that_is_legal(events: tuple[str, ...]) -> None:
    ledger = after(*events)
    resumed_at = SAVED.completed_steps if "resume" in events else 0
    assert ledger.completed_steps == resumed_at + events.count("complete")
    assert ledger.is_saving == (events.count("save") > events.count("commit"))


@pytest.mark.parametrize(("events", "event", "message"), ILLEGAL)
def test_an_order_that_is_refused(events: tuple[str, ...], event: str, message: str) -> None:
    """What is refused changes nothing: the ledger goes on as if it had not been told."""
    ledger = after(*events)
    before = vars(after(*events))
    with pytest.raises(LedgerError, match=message):
        EVENTS[event](ledger)
    assert vars(ledger) == before


def test_a_position_says_where_the_run_stands() -> None:
    ledger = after("begin", "resume", "publish")
    ledger.step_completed()
    ledger.published(12)
    ledger.trained_on(["run/8/0", "run/8/1", "run/5/0"])
    assert ledger.position(prompt_cursor=11, kl_coefficient=0.5) == Position(
        completed_steps=5,
        trained_version=12,
        prompt_cursor=11,
        consumed_trajectory_ids=("run/8/0", "run/8/1", "run/5/0"),
        kl_coefficient=0.5,
        steps_of_versions=((6, 3), (7, 4), (0, 4), (12, 5)),
        life=2,
    )


def test_a_position_holds_what_was_consumed_until_it_is_acknowledged() -> None:
    ledger = after(*BEGUN, *STEP, "save", *STEP)

    def consumed() -> tuple[str, ...]:
        return ledger.position(prompt_cursor=0).consumed_group_ids

    assert consumed() == ("run/1", "run/2")
    assert ledger.committed() == ("run/1",)
    assert consumed() == ("run/1", "run/2")
    ledger.acknowledged(("run/1",))
    assert consumed() == ("run/2",)


def test_a_step_is_saved_once_whoever_saved_it() -> None:
    assert not after(*BEGUN).is_saved
    assert after("begin", "resume").is_saved
    ledger = after(*BEGUN, *STEP, "save")
    assert (ledger.is_saved, ledger.is_saving) == (True, True)
    ledger.committed()
    assert (ledger.is_saved, ledger.is_saving) == (True, False)
    ledger.step_completed()
    assert not ledger.is_saved


def test_the_steps_of_the_newest_256_versions_are_remembered() -> None:
    ledger = after(*BEGUN)
    for _ in range(300):
        ledger.step_completed()
        publish(ledger)
        train(ledger)
    kept = ledger.position(prompt_cursor=0).steps_of_versions
    assert kept == tuple((step, step) for step in range(45, 301))

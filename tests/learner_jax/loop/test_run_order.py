"""The order of a learner's run, and why it ends: everything that it is made of only notes what it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from learner_jax.loop import holding
from learner_jax.loop import learner as module
from learner_jax.loop.learner import Learner, TrainingError

STARTED = ["resume", "log engine", "publish", "stored", "mark [] 0 7"]
BEGIN = [*STARTED, "compile"]
END = ["save", "stored", "proven"]


class Run:
    """A learner of `steps` steps whose steps have these records; one that is None was stopped.

    Args:
      others: whether each other host is asked to stop, before each step.
      stop: how often this one is not, before it is.
      hold: why training must wait, before each step.
    """

    def __init__(
        self,
        *records: dict[str, Any] | None,
        steps: int = 9,
        budget: float | None = None,
        stop: int = 99,
        others: tuple[bool, ...] = (),
        leads: bool = True,
        broken: str = "",
        hold: Callable[[], str | None] | None = None,
    ) -> None:
        self.did: list[str] = []
        self._records, self._broken = list(records), broken
        asked = iter([False] * stop + [True])
        ledger = SimpleNamespace(completed_steps=0, version=7)

        def one_step() -> dict[str, Any] | None:
            self.note("step")
            record = self._records.pop(0) if self._records else {"skipped": False, "kl": 0.0}
            ledger.completed_steps += record is not None
            return record

        made: Any = object.__new__(Learner)
        loss = SimpleNamespace(kl=SimpleNamespace(budget=budget))
        made._settings, made._ledger = SimpleNamespace(steps=steps, loss=loss), ledger
        made._engine = made._profiler = made._anew = None
        answers = [[other, None] for other in others]
        made._hosts = SimpleNamespace(is_leader=leads, gather=lambda value, what: [value, *answers])
        made._log = lambda event, **fields: self.note(f"log {event}")
        made._resume, made._publish, made._save = (self.noting(name) for name in ("resume", "publish", "save"))
        made._compile, made._one_step = self.noting("compile"), one_step
        made._position = lambda: "position"
        made._publishing = SimpleNamespace(wait=self.noting("stored"), close=self.noting("close"))
        made._saving = SimpleNamespace(confirm=lambda *, wait: self.note("proven" if wait else "looked at"))
        made._holding = holding.Holding(
            made._hosts,
            hold,
            lambda: next(asked),
            begun=made._save,
            meanwhile=partial(made._saving.confirm, wait=False),
            log=made._log,
        )
        made._source = SimpleNamespace(
            mark_trained=lambda ids, *, completed_steps, trained_version: self.note(
                f"mark {ids} {completed_steps} {trained_version}"
            ),
            finish=self.noting("finish"),
        )
        self.learner: Learner = made

    def note(self, what: str) -> None:
        self.did.append(what)
        if what == self._broken:
            raise OSError(f"{what} on purpose")

    def noting(self, what: str) -> Any:
        return lambda *_, **__: self.note(what)


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_LOOK_S", 0.001)
    monkeypatch.setattr(module, "log_engine", lambda engine, log: log("engine") or 1.0)


def test_a_run_that_comes_to_its_end_saves_and_is_over_for_the_others() -> None:
    run = Run(steps=2)
    outcome = run.learner.run()
    assert (outcome.reason, outcome.position) == ("finished", "position")
    assert run.did == [*BEGIN, "step", "step", *END, "finish", "close"]


def test_a_run_that_had_all_its_steps_takes_none() -> None:
    run = Run(steps=0)
    assert run.learner.run().reason == "finished"
    assert run.did == [*STARTED, *END, "finish", "close"]


def test_what_can_not_be_published_at_all_ends_the_run_before_a_step() -> None:
    run = Run(broken="stored")
    with pytest.raises(OSError, match="stored on purpose"):
        run.learner.run()
    assert run.did == ["resume", "log engine", "publish", "stored", "close"]


def test_what_can_not_be_compiled_ends_the_run_before_a_step() -> None:
    run = Run(broken="compile")
    with pytest.raises(OSError, match="compile on purpose"):
        run.learner.run()
    assert run.did == [*BEGIN, "close"]


def test_a_stop_saves_and_leaves_the_rest_for_the_next_life() -> None:
    """Also one that is asked for while a step waits for its groups."""
    for run, steps in ((Run(stop=1), 1), (Run({"skipped": False, "kl": 0.0}, None), 2)):
        assert run.learner.run().reason == "stopped"
        assert run.did == [*BEGIN, *["step"] * steps, "log stopping", *END, "close"]


def test_all_hosts_stop_where_one_is_asked_to() -> None:
    run = Run(others=(False, True))
    assert run.learner.run().reason == "stopped"
    assert "step" not in run.did


def test_a_follower_leaves_the_queue_to_the_leader() -> None:
    run = Run(steps=1, leads=False)
    assert run.learner.run().reason == "finished"
    assert run.did == [*STARTED[:-1], "compile", "step", *END, "close"]


def test_three_steps_in_a_row_that_were_not_finite_end_the_run_with_a_checkpoint() -> None:
    bad, good = {"skipped": True, "kl": 0.0}, {"skipped": False, "kl": 0.0}
    run = Run(bad, bad, good, bad, bad, bad, good)
    with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
        run.learner.run()
    assert run.did == [*BEGIN, *["step"] * 6, "save", "close"]


@pytest.mark.parametrize(("kl", "reason", "steps"), [(0.51, "kl_budget", 1), (0.5, "finished", 2)])
def test_a_policy_beyond_its_budget_of_kl_ends_the_run_for_all(kl: float, reason: str, steps: int) -> None:
    run = Run({"skipped": False, "kl": kl}, steps=2, budget=0.5)
    assert run.learner.run().reason == reason
    assert run.did == [*BEGIN, *["step"] * steps, *END, "finish", "close"]


def test_a_hold_begins_with_a_checkpoint_and_comes_before_the_step() -> None:
    answers = iter([None, "held", "held", "held", None])
    run = Run(steps=2, hold=lambda: next(answers))
    assert run.learner.run().reason == "finished"
    hold = ["log hold", "save", "looked at", "looked at", "log hold"]
    assert run.did == [*BEGIN, "step", *hold, "step", *END, "finish", "close"]


def test_a_follower_asks_nobody_whether_it_is_held() -> None:
    run = Run(steps=1, leads=False, hold=lambda: "never asked")
    assert run.learner.run().reason == "finished"
    assert "log hold" not in run.did

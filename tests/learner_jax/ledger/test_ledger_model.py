"""The ledger against a model in plain Python, and lives that crash anywhere: no group is lost or trained on twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from learner_jax.contracts.position import Position
from learner_jax.ledger.ledger import Ledger, LedgerError
from tests.support.properties import examples

START = Position(0, 0, 0, ())
#: What makes a position another one than the ledger's.
OTHERS: list[dict[str, Any]] = [{"completed_steps": 99}, {"consumed_trajectory_ids": ("run/0/9",)}, {"life": 99}]
GROUPS = tuple(f"run/{index}" for index in range(24))


class LedgerOrders(RuleBasedStateMachine):
    """Events in any order. The model is a list of what was told; what is legal is read off that list.

    It is written from the ledger's description: the life begins, may resume, publishes; each step is completed,
    published, recorded; one save at a time, committed and acknowledged before the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.told: list[tuple[str, Any]] = []
        self.number = 0

    def names(self) -> list[str]:
        return [name for name, _ in self.told]

    def last(self, *names: str) -> str:
        return next((name for name, _ in reversed(self.told) if name in names), "")

    def value(self, name: str, default: Any = None) -> Any:
        return next((value for found, value in reversed(self.told) if found == name), default)

    @property
    def steps(self) -> int:
        return self.value("resume", START).completed_steps + self.names().count("step")

    @property
    def is_between_steps(self) -> bool:
        """Whether the step before is published and recorded, and the next one is not completed."""
        is_published = self.last("begin", "resume", "step", "publish") == "publish"
        return is_published and self.last("step", "train") != "step"

    def expected(self) -> Position:
        """Where the run stands; it holds what was trained on and not yet acknowledged."""
        consumed: list[str] = []
        in_flight: list[str] = []
        for name, value in self.told:
            if name == "train":
                consumed += value
            elif name == "save":
                in_flight = list(consumed)
            elif name == "acknowledge":
                consumed = consumed[len(in_flight) :]
        steps = dict(self.value("resume", START).steps_of_versions)
        completed = self.value("resume", START).completed_steps
        for name, value in self.told:
            completed += name == "step"
            if name == "publish":
                steps[value] = completed
        return Position(
            completed_steps=self.steps,
            trained_version=self.value("publish", -1),
            prompt_cursor=5,
            consumed_trajectory_ids=tuple(consumed),
            kl_coefficient=0.5,
            steps_of_versions=tuple(steps.items()),
            life=self.value("begin"),
        )

    def tell(self, name: str, value: Any, call: Callable[[], Any], *, legal: bool) -> Any:
        """What is legal is taken down; what is not is refused, and nothing has changed by it."""
        if not legal:
            before = dict(vars(self.ledger))
            with pytest.raises(LedgerError):
                call()
            assert vars(self.ledger) == before
            return None
        result = call()
        self.told.append((name, value))
        return result

    @initialize(resumes=st.sampled_from([None, False, True]))
    def start(self, resumes: bool | None) -> None:
        """Most lives begin as they should; None leaves the first event to chance."""
        if resumes is not None:
            self.begin(5)
            if resumes:
                self.resume(4, 3)
            self.publish(1)

    @rule(life=st.integers(0, 9))
    def begin(self, life: int) -> None:
        legal = life > 0 and "begin" not in self.names()
        self.tell("begin", life, lambda: self.ledger.begun(life), legal=legal)

    @rule(life=st.integers(1, 9), steps=st.integers(0, 5))
    def resume(self, life: int, steps: int) -> None:
        position = Position(steps, 3, 0, (), 0.0, ((2, 1), (3, steps)), life=life)
        fresh = not {"resume", "publish"} & set(self.names())
        legal = "begin" in self.names() and fresh and life < self.value("begin")
        self.tell("resume", position, lambda: self.ledger.resumed(position), legal=legal)

    @rule(more=st.integers(-1, 3))
    def publish(self, more: int) -> None:
        version = self.ledger.version + more
        is_due = self.last("begin", "resume", "step", "publish") in ("begin", "resume", "step")
        self.tell("publish", version, lambda: self.ledger.published(version), legal=is_due and more > 0)

    @rule()
    def step(self) -> None:
        self.tell("step", None, self.ledger.step_completed, legal=self.is_between_steps)

    @rule(count=st.integers(0, 3))
    def train(self, count: int) -> None:
        self.number += count
        ids = [f"run/{self.number}/{sample}" for sample in range(count)]
        is_published = self.last("step", "publish") == "publish"
        legal = is_published and self.last("step", "train") == "step"
        self.tell("train", ids, lambda: self.ledger.trained_on(ids), legal=legal)

    @rule(count=st.integers(0, 3))
    def whole_step(self, count: int) -> None:
        """The common case: each of its events is due, if the first one is."""
        self.step()
        self.publish(1)
        self.train(count)

    @rule(change=st.sampled_from([{}, {}, {}, *OTHERS]))
    def save(self, change: dict[str, Any]) -> None:
        if not self.is_between_steps:
            self.tell("save", None, lambda: self.ledger.position(prompt_cursor=5), legal=False)
            return
        position = replace(self.ledger.position(prompt_cursor=5, kl_coefficient=0.5), **change)
        saved = self.value("save") or self.value("resume")
        is_free = self.last("save", "commit", "acknowledge") in ("", "acknowledge")
        legal = is_free and not change and (saved is None or saved.completed_steps < self.steps)
        self.tell("save", position, lambda: self.ledger.save_started(position), legal=legal)

    @rule()
    def whole_save(self) -> None:
        """The common case."""
        self.save({})
        self.commit()
        self.acknowledge(True)

    @rule()
    def commit(self) -> None:
        is_saving = self.last("save", "commit") == "save"
        groups = self.tell("commit", None, self.ledger.committed, legal=is_saving)
        if is_saving:
            assert groups == self.value("save").consumed_group_ids

    @rule(right=st.booleans())
    def acknowledge(self, right: bool) -> None:
        saved = self.value("save")
        groups = saved.consumed_group_ids if saved is not None and right else ("run/none",)
        is_committed = self.last("save", "commit", "acknowledge") == "commit"
        self.tell(
            "acknowledge",
            None,
            lambda: self.ledger.acknowledged(groups),
            legal=is_committed and saved is not None and right,
        )

    @invariant()
    def it_stands_where_the_model_says(self) -> None:
        assert self.ledger.completed_steps == self.steps
        assert self.ledger.version == self.value("publish", -1)
        assert self.ledger.is_saving == (self.last("save", "commit") == "save")
        saved = self.value("save") or self.value("resume")
        assert self.ledger.is_saved == (saved is not None and saved.completed_steps == self.steps)
        if self.is_between_steps:
            assert self.ledger.position(prompt_cursor=5, kl_coefficient=0.5) == self.expected()


@dataclass
class Queue:
    """Groups by what the queue holds of them: not handed out, handed out and trained on, forgotten for good."""

    ready: list[str]
    trained: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)

    def take(self, count: int) -> list[str]:
        taken, self.ready = self.ready[:count], self.ready[count:]
        self.trained |= set(taken)
        return taken

    def forget(self, group_ids: tuple[str, ...]) -> None:
        self.ready = [name for name in self.ready if name not in group_ids]
        self.trained -= set(group_ids)
        self.forgotten |= set(group_ids)

    def recover(self, consumed: tuple[str, ...]) -> None:
        self.forget(consumed)
        self.ready = sorted(self.trained) + self.ready
        self.trained.clear()


class LedgerLives(RuleBasedStateMachine):
    """A run of many lives, each of which may end between any two things that it does.

    Attributes:
      held: of each committed checkpoint, what its arrays were trained on.
      history: what the parameters of this life were trained on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue(list(GROUPS))
        self.held: list[tuple[Position, frozenset[str]]] = []
        self.versions = self.num_lives = 0
        self.live()

    def live(self) -> None:
        """A life begins, from the newest checkpoint."""
        self.num_lives += 1
        self.ledger, self.history = Ledger(), frozenset[str]()
        self.saving: tuple[Position, frozenset[str]] | None = None
        self.forgettable: tuple[str, ...] | None = None
        self.ledger.begun(self.num_lives)
        consumed: tuple[str, ...] = ()
        if self.held:
            position, self.history = self.held[-1]
            self.ledger.resumed(position)
            consumed = position.consumed_group_ids
        self.queue.recover(consumed)
        # Each group is in the parameters or will be trained on, never both and never neither.
        assert self.queue.forgotten == self.history
        assert set(self.queue.ready) == set(GROUPS) - self.history
        self.publish()

    def publish(self) -> None:
        self.versions += 1
        self.ledger.published(self.versions)

    @rule(commits=st.booleans())
    def crash(self, commits: bool) -> None:
        """A save in flight may have been committed, with nobody left to see it."""
        if self.saving is not None and commits:
            self.held.append(self.saving)
        self.live()

    @precondition(lambda self: self.queue.ready)
    @rule(count=st.integers(1, 3), dies_after=st.sampled_from(["", "", "", "taking", "stepping"]))
    def step(self, count: int, dies_after: str) -> None:
        taken = self.queue.take(count)
        if dies_after == "taking":
            return self.live()
        self.ledger.step_completed()
        if dies_after == "stepping":
            return self.live()
        self.publish()
        self.ledger.trained_on([f"{name}/{sample}" for name in taken for sample in range(2)])
        assert not self.history & set(taken), "trained on twice"
        self.history |= set(taken)
        return None

    @precondition(lambda self: not (self.ledger.is_saved or self.ledger.is_saving) and self.forgettable is None)
    @rule()
    def save(self) -> None:
        position = self.ledger.position(prompt_cursor=0)
        self.ledger.save_started(position)
        self.saving = position, self.history

    @precondition(lambda self: self.saving is not None)
    @rule()
    def commit(self) -> None:
        assert self.saving is not None
        self.held.append(self.saving)
        self.saving, self.forgettable = None, self.ledger.committed()

    @precondition(lambda self: self.forgettable is not None)
    @rule(dies=st.booleans())
    def acknowledge(self, dies: bool) -> None:
        """The queue forgets; the learner may die before it has taken that down."""
        assert self.forgettable is not None
        self.queue.forget(self.forgettable)
        assert self.queue.forgotten <= self.held[-1][1], "forgotten before a checkpoint holds it"
        if dies:
            return self.live()
        self.ledger.acknowledged(self.forgettable)
        self.forgettable = None
        return None


TestLedgerOrders, TestLedgerLives = LedgerOrders.TestCase, LedgerLives.TestCase
TestLedgerOrders.settings, TestLedgerLives.settings = examples(4.0, steps=2.0), examples(2.0)

"""A queue and its model side by side, with crashes around transactions; what is done to them is in `queue_machine`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from learner_jax.contracts.trajectory import Trajectory, encode_group
from serving_bridge.database.database import Database, Session, open_database
from serving_bridge.queue import rows
from serving_bridge.queue.bounds import QueueBounds
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import Clock
from tests.support.queue_model import ENDED, LIVE, Group, Learner, QueueModel, Refused, Saved
from tests.support.trajectories import make_group

T = TypeVar("T")
Doom = Literal["", "before", "after"]

LEASE_S, CLAIM_S, MAX_TRIES, MAX_AGE_S = 60.0, 50.0, 2, 3000.0
BOUNDS = QueueBounds(max_groups=5, max_age_s=MAX_AGE_S, max_dead=1)
#: Between the payload of a short answer and of a long one.
BLOB_BYTES = 2000
#: Files without a row are swept when they are older than an hour.
SWEPT_S = 3700.0
WORKERS, LEARNERS = ("ann", "bob"), (0, 1)
#: The one that is in charge comes more often than one of the two by number; the other is refused most of the time.
IN_CHARGE = -1


class Crash(BaseException):
    """The process died."""


class DoomedDatabase:
    """A connection whose process dies around its next transaction: before the commit, or right after it."""

    def __init__(self, inner: Database) -> None:
        self.inner, self.doom = inner, ""

    @property
    def name(self) -> str:
        return self.inner.name

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        doom, self.doom = self.doom, ""

        def dying(session: Session) -> T:
            result = work(session)
            if doom == "before":
                raise Crash
            return result

        result = self.inner.write(dying, synced=synced)
        if doom == "after":
            raise Crash
        return result

    def read(self, work: Callable[[Session], T]) -> T:
        return self.inner.read(work)

    def close(self) -> None:
        self.inner.close()


class QueueWorld(RuleBasedStateMachine):
    """Two workers and two learners at a queue, and what must hold whatever they do.

    Attributes:
      place: (folder of this machine's files, URL of its database, made anew for each); set by the test.
    """

    place: Callable[[], tuple[Path, str]]
    _numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.url = type(self).place()
        self.clock = Clock()
        self.clock.now_s = time.time()  # files have the time of writing from the disk
        self.model = QueueModel(
            self.clock.now_s, LEASE_S, CLAIM_S, MAX_TRIES, BOUNDS.max_groups, MAX_AGE_S, BOUNDS.max_dead
        )
        self.opened: list[TrajectoryQueue] = []
        self.doom: Doom = ""
        self.saved, self.history = Saved(), frozenset[str]()
        self.may_leak = False  # a crash, or a drop, left files behind that the next recovery takes back
        self.hub = self._open("hub")
        self.seats = [self._open(f"learner-{number}") for number in LEARNERS]
        self.learners = [Learner(0) for _ in LEARNERS]

    def teardown(self) -> None:
        for queue in self.opened:
            queue.close()

    # What always holds.

    @invariant()
    def the_queue_shows_what_the_model_holds(self) -> None:
        model, shown = self.model, self.hub.admin.overview()
        progress, states = shown.progress, [group.state for group in model.groups.values()]
        assert (progress.completed_steps, progress.trained_version, progress.finished, progress.next_prompt) == (
            model.completed_steps, model.trained_version, model.finished, model.next_prompt,
        )  # fmt: skip
        assert shown.watermark == model.watermark
        counts = {state: states.count(state) for state in (*LIVE, *ENDED)}
        assert {state: getattr(progress, f"num_{state}") for state in counts} == counts
        assert progress.num_dead == states.count("dead") + states.count("forgotten")
        assert [letter.group_id for letter in shown.dead] == [group.group_id for group in model.among("dead")]
        claims: dict[str, list[tuple[int, float]]] = {}
        for index, (worker, until_s) in model.claims.items():
            claims.setdefault(worker, []).append((index, until_s))
        assert [(row.worker, row.num_prompts, row.first, row.last, row.until_s) for row in shown.claims] == [
            (worker, len(own), min(own)[0], max(own)[0], min(until_s for _, until_s in own))
            for worker, own in sorted(claims.items())
        ]
        assert sum(row.num_groups for row in shown.leases) == states.count("leased")

    @invariant()
    def every_payload_that_is_needed_is_there_and_no_other(self) -> None:
        wanted = self.hub.database.read(rows.wanted_files)
        held = self.model.among(*LIVE, "dead")
        assert sum(wanted.values()) == sum(len(group.payload) > BLOB_BYTES for group in held)
        assert self.hub.blobs is not None
        files = {name for name, _, _ in self.hub.blobs.files()}
        assert files >= wanted.keys(), "a payload is gone that is needed yet"
        assert self.may_leak or files == wanted.keys(), "a file is kept that nobody needs"

    @invariant()
    def a_group_has_its_effect_once(self) -> None:
        """What the parameters were trained on is never offered again, and nothing else is forgotten."""
        trained = {g.group_id for g in self.model.groups.values() if g.state in ("trained", "acknowledged")}
        assert trained == self.history

    # Pieces of the above.

    def _who(self, number: int) -> int:
        """A learner by number; for `IN_CHARGE` one of this turn, if there is one, rather one that holds leases."""
        if number != IN_CHARGE:
            return number
        return max(LEARNERS, key=lambda n: (self.learners[n].turn == self.model.turn, len(self.learners[n].leases)))

    def _has_leases(self) -> bool:
        return any(learner.leases for learner in self.learners)

    def _open(self, name: str) -> TrajectoryQueue:
        queue = TrajectoryQueue(
            database=DoomedDatabase(open_database(self.url)),
            blobs=self.folder / "blobs",
            blob_bytes=BLOB_BYTES,
            lease_s=LEASE_S,
            claim_lease_s=CLAIM_S,
            max_tries=MAX_TRIES,
            bounds=BOUNDS,
            clock=self.clock,
            consumer=name,
        )
        self.opened.append(queue)
        return queue

    def _both(self, real: Callable[[], T], model: Callable[[], T], *, learner: int | None = None) -> None:
        """Does it to the queue and to the model: both answer the same, or refuse for the same reason.

        Of a process that died before the commit nothing is left; of one that died after it everything but the answer.
        """
        queue = self.hub if learner is None else self.seats[learner]
        doom, self.doom = self.doom, ""
        queue.database.doom = doom  # type: ignore[attr-defined]
        try:
            answer: Any = real()
        except Crash:
            if doom == "after":
                with suppress(Refused):
                    model()
            self._died(learner)
            return
        except Exception as error:  # noqa: BLE001  (compared below)
            answer = type(error).__name__
        queue.database.doom = ""  # type: ignore[attr-defined]
        try:
            expected: Any = model()
        except Refused as refused:
            expected = refused.kind
        assert answer == expected

    def _died(self, learner: int | None) -> None:
        """The process is gone, and another takes its place; its connection stays as it was left."""
        self.may_leak = True
        if learner is None:
            self.hub = self._open("hub")
        else:
            self.seats[learner] = self._open(f"learner-{learner}")
            self.learners[learner] = Learner(self.model.turn)

    def _group(self, index: int, oldest: int, data: st.DataObject) -> tuple[Group, list[Trajectory]]:
        """A group of prompt `index`: each has tokens of its own, some a payload that goes into a file."""
        answer_tokens = data.draw(st.sampled_from([60, 2]))
        number = next(self._numbers)
        made = make_group(f"run/{index}", answer_tokens=answer_tokens, version=oldest, seed=number)
        return Group(f"run/{index}", index, encode_group(made), oldest, 0, 0.0, 0), made

    def _put(self, groups: Sequence[tuple[Group, list[Trajectory]]], priority: int, worker: str | None) -> None:
        for group, _ in groups:
            group.priority = priority
        self._both(
            lambda: self.hub.producer.put(
                [(group.index, made) for group, made in groups], priority=priority, worker=worker
            ),
            lambda: self.model.put([group for group, _ in groups], worker),
        )

    def _known(self, group: list[Trajectory]) -> str:
        """Id of a group that came out of the queue, whose content is what was put first."""
        group_id = group[0].group_id
        assert encode_group(group) == self.model.groups[group_id].payload, "another content than was put"
        return group_id

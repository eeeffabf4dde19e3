"""A deployment that records, takes feedback, makes datasets and trains online, with faults by seed; and what must hold.

Gateways are killed and cut off from the database before and after commits, wall clocks jump by days, feedback comes up
to ten times and out of order, consent is withdrawn at any moment, the process that puts online groups is killed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from serving_bridge.database import Database, DatabaseError, Session
from serving_bridge.feedback import Datasets, Feedback, FeedbackStore, OnlineFeed, OnlineTerms, withdrawn_groups
from serving_bridge.queue import Pace, TrajectoryQueue
from serving_bridge.recordings import Recorder, RecordingStore, Redaction, Request
from serving_bridge.safety import Checker, RulesForTraining
from serving_bridge.sessions import ChatMessage
from serving_bridge.settings import FeedbackSettings, SafetySettings, SessionsSettings
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, at_once, told

T = TypeVar("T")
_DAY_S = 86_400.0
USERS = ("jane", "joe", "ann")
_PACE = Pace(max_staleness=50, groups_per_step=4, total_steps=100)


class Killed(BaseException):
    """The process is gone."""


class Cut:
    """The database as one process reaches it."""

    def __init__(self, inner: Database, draws: random.Random) -> None:
        self.inner, self._draws, self.odds = inner, draws, 0.0
        self.name = inner.name

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        self._check()
        result = self.inner.write(work, synced=synced)
        self._check()  # committed, and the process does not hear of it
        return result

    def read(self, work: Callable[[Session], T]) -> T:
        self._check()
        return self.inner.read(work)

    def close(self) -> None:
        """Others use it."""

    def _check(self) -> None:
        if self._draws.random() < self.odds:
            raise DatabaseError("cut off")


class Deployment:
    """One seed's.

    Attributes:
      ended: ids of answers that ended, with their user and the number of withdrawals of that user before.
      pending: feedback that its sender has not heard of yet.
      sent: feedback ids that somebody was told are stored.
      trained: (group, sessions that were withdrawn when it was leased).
    """

    def __init__(self, seed: int, folder: Path, tokenizer: Tokenizer) -> None:
        self.draws, self.folder, self.tokenizer = random.Random(seed), folder, tokenizer
        self.recordings = Recordings(tokenizer, folder, str(folder / "state.db"))
        assert self.recordings.database is not None
        self.cut = Cut(self.recordings.database, self.draws)
        self.clock = self.recordings.clock
        self.clock.now_s = 1e6
        self.queue = TrajectoryQueue(folder / "online.db", clock=self.clock, claim_lease_s=1)
        self.ended: dict[str, tuple[str, int]] = {}
        self.withdrawals: Counter[str] = Counter()
        self.pending: list[Feedback] = []
        self.sent: dict[str, str] = {}
        self.trained: list[tuple[str, bool]] = []
        self.faults: Counter[str] = Counter()
        self.lives = self.number = 0
        self.recorder = self._started()

    def _started(self) -> Recorder:
        self.lives += 1
        store = RecordingStore(self.cut, clock=self.clock)
        made = Recorder(
            SessionsSettings(record=True, retention_days=3650), self.tokenizer, store, self.folder / "spool",
            Redaction(None), name=f"g{self.lives}", clock=self.clock, blocking=at_once,
        )  # fmt: skip
        made._adopt()
        return made

    def feedback(self) -> FeedbackStore:
        settings = FeedbackSettings(window_s=1e8)
        return FeedbackStore(self.cut, settings, checker=None, clock=self.clock)

    async def step(self) -> None:
        """One random thing happens."""
        self.clock.now_s += self.draws.expovariate(1 / 30)
        self.cut.odds = self.draws.choice((0.0, 0.0, 0.1, 0.5)) if self.draws.random() < 0.3 else self.cut.odds
        action = self.draws.choices(
            (self._ask, self._send, self._flush, self._kill, self._jump, self._withdraw, self._emit, self._train),
            (8, 8, 2, 1, 1, 2.5, 3, 1),
        )[0]
        try:
            await action()
        except (DatabaseError, Killed):
            self.faults[action.__name__.strip("_")] += 1

    async def _ask(self) -> None:
        user = self.draws.choice(USERS)
        dialog = (ChatMessage("user", f"secret of {user}"),)
        conversation = f"c{self.draws.randrange(3)}"
        recording = await self.recorder.begin(Request("acme", user, conversation, "", dialog, retention_days=3650))
        if recording is None:
            return
        self.number += 1
        response_id = await told(recording, self.tokenizer, f"yes {user}", "no", response_id=f"r{self.number}")
        generation = int(recording.live.head.generation.rpartition(".")[2])
        for choice in range(2):
            self.ended[f"{response_id}/{choice}"] = (user, generation)
        pieces = [Feedback(f"{response_id}-{n}", f"{response_id}/{n}", "rating", 1.0 - n) for n in range(2)]
        pieces.append(Feedback(f"{response_id}-e", f"{response_id}/0", "edit", text=f"edit for {user}"))
        self.pending += [piece for piece in pieces for _ in range(self.draws.randint(1, 10))]
        self.draws.shuffle(self.pending)

    async def _send(self) -> None:
        if not self.pending:
            return
        batch = [self.pending.pop() for _ in range(min(len(self.pending), self.draws.randint(1, 6)))]
        try:
            outcomes = self.feedback().add("acme", batch)
        except DatabaseError:
            self.pending = batch + self.pending  # sent again: whether it was stored is not known
            raise
        for piece, outcome in zip(batch, outcomes, strict=True):
            if outcome != "unknown" or piece.kind != "edit":
                self.sent[piece.feedback_id] = piece.answer_id

    async def _flush(self) -> None:
        await self.recorder.flush()
        self.feedback().settle()

    async def _kill(self) -> None:
        self.faults["kill"] += 1
        self.recorder._journal.close(remove=False)
        self.recorder = self._started()

    async def _jump(self) -> None:
        self.faults["jump"] += 1
        self.clock.now_s += self.draws.choice((-20 * _DAY_S, -60.0, 60.0, 20 * _DAY_S))

    async def _withdraw(self) -> None:
        user = self.draws.choice(USERS)
        odds, self.cut.odds = self.cut.odds, 0.0
        self.recordings.store.withdraw(tenant="acme", user=user)
        self.withdrawals[user] += 1
        self.cut.odds = odds

    async def _emit(self) -> None:
        feed = self._feed()
        if self.draws.random() < 0.3:
            real = self.queue.producer.put

            def put(*arguments: Any, **fields: Any) -> Any:
                if self.draws.random() < 0.5:
                    raise Killed
                real(*arguments, **fields)
                raise Killed

            self.queue.producer.put = put  # type: ignore[method-assign]
            try:
                feed.emit(3)
            finally:
                self.queue.producer.put = real  # type: ignore[method-assign]
        else:
            feed.emit(3)

    def _feed(self) -> OnlineFeed:
        terms = OnlineTerms("run", "t", 1.0, 0.0, 1, 10_000, _PACE)
        store = RecordingStore(self.cut, clock=self.clock)
        guard = RulesForTraining(Checker(SafetySettings()))
        return OnlineFeed(self.cut, store, self.feedback(), self.queue, guard, terms, clock=self.clock)

    async def _train(self) -> None:
        groups = self.queue.consumer.lease_groups(2, trained_version=3, max_staleness=50).groups
        names = [group[0].group_id for group in groups]
        gone = withdrawn_groups(self.recordings.database, names) if names else set()  # type: ignore[arg-type]
        for group in groups:
            name = group[0].group_id
            if name in gone:
                self.queue.consumer.bury(name, "withdrawn")
                continue
            state = self._state(int(name.rpartition("/")[2]))
            self.trained.append((name, state == "kept"))
        kept = [name for name in names if name not in gone]
        self.queue.consumer.mark_trained(kept, completed_steps=0, trained_version=3)
        self.queue.consumer.acknowledge(kept)

    def _state(self, number: int) -> str:
        assert self.recordings.database is not None
        rows = self.recordings.database.read(
            lambda session: session.execute(
                "SELECT s.state FROM recorded_sessions s JOIN online_groups USING (session_id) WHERE number = ?",
                (number,),
            )
        )
        return rows[0][0] if rows else "gone"

    async def quiet(self) -> None:
        """Faults end, and everything on its way comes to its end."""
        self.cut.odds = 0.0
        await self._kill()
        assert await self.recorder.flush()
        while self.pending:
            await self._send()
        self.feedback().settle()
        for _ in range(3):
            self.clock.now_s += 100
            self._feed().emit()
            await self._train()

    def violations(self) -> list[str]:
        """What does not hold."""
        found = []
        sessions = list(self.recordings.store.each())
        kept = [answer.answer_id for recorded in sessions for answer in recorded.answers]
        wanted = {a for a, (user, generation) in self.ended.items() if generation == self.withdrawals[user]}
        if sorted(kept) != sorted(wanted):
            found.append(f"answers: lost {wanted - set(kept)}, revived {set(kept) - wanted}, {len(kept)} kept")
        stored = Counter(
            (one.answer_id, one.kind) for one in self.feedback().listed(100_000) if one.outcome == "joined"
        )
        found += [f"joined {number} times: {key}" for key, number in stored.items() if number > 1]
        missing = {name for name, answer_id in self.sent.items() if answer_id in wanted and "-e" not in name}
        joined = {one.answer_id for pieces in self.feedback().of_answers().values() for one in pieces}
        found += [f"never joined: {name}" for name in missing if self.sent[name] not in joined]
        found += [f"stays joined without its answer: {a}" for a in joined - wanted]
        found += [f"trained on a withdrawn session: {name}" for name, was_kept in self.trained if not was_kept]
        found += [f"trained twice: {n}" for n, c in Counter(name for name, _ in self.trained).items() if c > 1]
        return found + self._dataset_violations(wanted)

    def _dataset_violations(self, wanted: set[str]) -> list[str]:
        guard = RulesForTraining(Checker(SafetySettings()))
        datasets = Datasets(self.cut, self.recordings.store, self.feedback(), guard, clock=self.clock)
        datasets.make("all", "supervised", self.folder, until_s=self.clock.now_s + 1e9)
        lines = (self.folder / "all" / "train.jsonl").read_text().splitlines()
        live = {self.ended[answer_id][0] for answer_id in wanted}
        users = {json.loads(line)["answer"].removeprefix("edit for ") for line in lines}
        self.recordings.store.withdraw(tenant="acme", user=USERS[0])
        left = (self.folder / "all" / "train.jsonl").read_text()
        return [f"a dataset has {users - live}"] * bool(users - live) + ["not cleaned"] * (USERS[0] in left)

    def close(self) -> None:
        self.recorder._journal.close(remove=True)
        self.queue.close()
        assert self.recordings.database is not None
        self.recordings.database.close()


def simulated(seed: int, folder: Path, tokenizer: Tokenizer, *, steps: int = 120) -> Deployment:
    """A seed's deployment after its faults and its quiet end."""

    async def run() -> Deployment:
        deployment = Deployment(seed, folder, tokenizer)
        for _ in range(steps):
            await deployment.step()
        await deployment.quiet()
        return deployment

    return asyncio.run(run())

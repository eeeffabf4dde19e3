"""Online trajectories: the scored answers to a turn go into a queue of their own, each turn once.

A turn's number in the queue is written down before its group is put, so that whoever goes on after a kill puts the same
group under the same id. A withdrawal marks the number; the learner asks for the mark before it makes a batch.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from learner_jax.contracts import ContractError, Trajectory
from serving_bridge.database import Database, Session, marks
from serving_bridge.feedback.datasets import conversation_of, scores_of, sessions_of, why_left_out
from serving_bridge.feedback.scores import Score
from serving_bridge.feedback.store import FeedbackStore
from serving_bridge.feedback.trajectories import group_of
from serving_bridge.queue import Pace, TrajectoryQueue, online_run
from serving_bridge.recordings import Recorded, RecordingStore
from serving_bridge.safety import TrainingGuard

_WORKER = "online"
_SAME_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class OnlineTerms:
    """Which turns become trajectories.

    Attributes:
      run: name of the run.
      tokenizer: fingerprint of its tokenizer.
      temperature: that the learner takes log-probs at; answers sampled at another one are left out.
      wait_s: seconds after its last answer before a turn is put: what is said of it later counts no more.
      min_answers: scored answers of a turn.
      max_tokens: of a trajectory.
      pace: of the queue.
    """

    run: str
    tokenizer: str
    temperature: float
    wait_s: float
    min_answers: int
    max_tokens: int
    pace: Pace


class OnlineFeed:
    """Puts online groups; one process at a time.

    Args:
      database: whose `RECORDINGS` and `FEEDBACK` tables are there.
      queue: of online groups alone.
      guard: judges conversations as training data.
    """

    def __init__(
        self,
        database: Database,
        sessions: RecordingStore,
        feedback: FeedbackStore,
        queue: TrajectoryQueue,
        guard: TrainingGuard,
        terms: OnlineTerms,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._sessions, self._feedback, self._queue = database, sessions, feedback, queue
        self._guard, self._terms, self._clock = guard, terms, clock

    def emit(self, limit: int = 64) -> Counter[str]:
        """Puts groups as far as the queue's pace lets it; returns what happened."""
        self._feedback.settle()
        counts: Counter[str] = Counter()
        candidates = list(itertools.islice(self._candidates(counts), limit))
        step = self._queue.producer.progress().completed_steps
        claimed = self._queue.producer.resume_claims(_WORKER)
        wanted = len(candidates)
        claimed += self._queue.producer.claim_prompts(_WORKER, wanted, self._terms.pace, served_step=step)
        left = iter(candidates)
        for number in dict.fromkeys(claimed):
            group = self._again(number) if self._is_known(number) else self._next(number, left)
            if group:
                try:
                    counts["put"] += self._queue.producer.put([(number, group)], worker=_WORKER)
                    continue
                except ContractError:
                    counts["refused"] += 1
            self._queue.producer.release_claim(number, worker=_WORKER)
        return counts

    def _candidates(self, counts: Counter[str]) -> Iterator[tuple[Recorded, str, dict[str, Score]]]:
        """Turns that may be put, with their scores."""
        said = self._feedback.of_answers()
        known = {turn for (turn,) in self._db.read(lambda s: s.execute("SELECT turn_id FROM online_groups"))}
        before_s = self._clock() - self._terms.wait_s
        for recorded in self._sessions.whole(sessions_of(said)):
            scores = scores_of({a.answer_id: said[a.answer_id] for a in recorded.answers if a.answer_id in said})
            for turn in recorded.turns:
                own = {a.answer_id: a for a in recorded.answers if a.turn_id == turn.turn_id and a.answer_id in scores}
                if not own or turn.turn_id in known or max(a.created_s for a in own.values()) > before_s:
                    continue
                if self._goes_on(recorded):
                    counts["not ended"] += 1
                    continue
                group = self._built(recorded, turn.turn_id, scores, 0)
                if len(group) < self._terms.min_answers:
                    counts["too few exact samples"] += 1
                elif max(len(trajectory.tokens) for trajectory in group) > self._terms.max_tokens:
                    counts["longer than learner.sequence_length"] += 1
                elif (reason := self._why_left_out(recorded)) is not None:
                    counts[reason] += 1
                else:
                    yield recorded, turn.turn_id, scores

    def _goes_on(self, recorded: Recorded) -> bool:
        """Whether the session is an agent's that has not ended."""
        return bool(
            self._db.read(
                lambda s: s.execute(
                    "SELECT 1 FROM agent_sessions WHERE conversation = ? AND ended_s IS NULL",
                    (recorded.row.conversation,),
                )
            )
        )

    def _built(self, recorded: Recorded, turn_id: str, scores: dict[str, Score], number: int) -> list[Trajectory]:
        terms = self._terms
        usable = {
            a.answer_id: scores[a.answer_id]
            for a in recorded.answers
            if a.answer_id in scores and abs(a.temperature - terms.temperature) <= _SAME_TEMPERATURE
        }
        group_id = f"{online_run(terms.run)}/{number}"
        whole = frozenset(usable) if self._is_agents(recorded) else frozenset()
        return group_of(recorded, turn_id, usable, group_id=group_id, tokenizer=terms.tokenizer, whole=whole)

    def _is_agents(self, recorded: Recorded) -> bool:
        return bool(
            self._db.read(
                lambda s: s.execute("SELECT 1 FROM agent_sessions WHERE conversation = ?", (recorded.row.conversation,))
            )
        )

    def _why_left_out(self, recorded: Recorded) -> str | None:
        """What guards have against the session; None for nothing."""
        return why_left_out(
            self._guard.judged([conversation_of(recorded, answer.answer_id) for answer in recorded.answers])
        )

    def _next(
        self, number: int, candidates: Iterator[tuple[Recorded, str, dict[str, Score]]]
    ) -> list[Trajectory] | None:
        """The group of the next turn, written down under this number; None where there is none."""
        for recorded, turn_id, scores in candidates:
            if self._written(number, turn_id, recorded.row.session_id):
                return self._built(recorded, turn_id, scores, number)
        return None

    def _again(self, number: int) -> list[Trajectory] | None:
        """The group that was written down under a number; None if it was withdrawn."""
        ((turn_id, session_id, state),) = self._db.read(
            lambda s: s.execute("SELECT turn_id, session_id, state FROM online_groups WHERE number = ?", (number,))
        )
        if state != "put":
            return None
        recorded = self._sessions.read(session_id)
        said = self._feedback.of_answers()
        scores = scores_of({a.answer_id: said[a.answer_id] for a in recorded.answers if a.answer_id in said})
        return self._built(recorded, turn_id, scores, number)

    def _is_known(self, number: int) -> bool:
        return bool(self._db.read(lambda s: s.execute("SELECT 1 FROM online_groups WHERE number = ?", (number,))))

    def _written(self, number: int, turn_id: str, session_id: str) -> bool:
        """Writes a turn's number down; False if its session is not kept any more."""
        now = self._clock()

        def work(session: Session) -> bool:
            kept = session.execute(
                "SELECT 1 FROM recorded_sessions WHERE session_id = ? AND state = 'kept'" + session.dialect.for_update,
                (session_id,),
            )
            if kept:
                session.execute(
                    "INSERT INTO online_groups (number, turn_id, session_id, state, made_s) VALUES (?, ?, ?, 'put', ?)",
                    (number, turn_id, session_id, now),
                )
            return bool(kept)

        return self._db.write(work)


def withdrawn_groups(database: Database, group_ids: Sequence[str]) -> set[str]:
    """Those of the online groups that must not be trained on: withdrawn ones, and those that nobody wrote down."""
    numbers = {int(name.rpartition("/")[2]): name for name in group_ids}
    rows = database.read(
        lambda session: session.execute(
            f"SELECT number FROM online_groups WHERE state = 'put' AND number IN ({marks(numbers)})", list(numbers)
        )
    )
    return set(numbers.values()) - {numbers[number] for (number,) in rows}


def groups_trained(database: Database, group_ids: Sequence[str], version: int) -> None:
    """Notes the version that was trained on online groups; the first one stays."""
    database.write(
        lambda session: session.executemany(
            "UPDATE online_groups SET trained_version = coalesce(trained_version, ?) WHERE number = ?",
            [(version, int(name.rpartition("/")[2])) for name in group_ids],
        )
    )

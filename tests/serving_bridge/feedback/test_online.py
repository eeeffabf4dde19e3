"""Online groups: each turn once, whatever is killed; exact ids; nothing that was withdrawn or is unfinished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import RecordLimits
from serving_bridge.feedback import Feedback, OnlineFeed, OnlineTerms, groups_trained, withdrawn_groups
from serving_bridge.queue import Pace, TrajectoryQueue
from serving_bridge.safety import Checker, Messages, RulesForTraining, TrainingGuard, Verdict
from serving_bridge.settings import SafetySettings
from serving_bridge.text import Tokenizer
from tests.support.recording_world import Recordings, answer
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]

LIMITS = RecordLimits(vocab_size=10_000, max_length=500, group_size=0, tokenizer="t", run="run/online")


PACE = Pace(max_staleness=64, groups_per_step=4, total_steps=10)


class World:
    """Recordings with scored answers, and the queue of online groups."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self.recordings = Recordings(tokenizer, folder)
        self.feedback = self.recordings.feedback()
        self.queue = TrajectoryQueue(folder / "online.db", limits=LIMITS, clock=self.recordings.clock, claim_lease_s=5)

    def feed(
        self, *, min_answers: int = 1, pace: Pace = PACE, guard: TrainingGuard | None = None, **changes: Any
    ) -> OnlineFeed:
        assert self.recordings.database is not None
        given = {"run": "run", "tokenizer": "t", "temperature": 1.0, "wait_s": 60.0, "max_tokens": 500, **changes}
        terms = OnlineTerms(min_answers=min_answers, pace=pace, **given)
        return OnlineFeed(
            self.recordings.database, self.recordings.store, self.feedback, self.queue,
            guard or RulesForTraining(Checker(SafetySettings())), terms, clock=self.recordings.clock,
        )  # fmt: skip

    def answered(self, *scores: float, **fields: Any) -> tuple[str, str]:
        """(session, response) of an answer with a scored choice for each number."""
        session_id, response_id = answer(self.recordings, *(f"text {n}" for n in range(len(scores))), **fields)
        pieces = [Feedback(f"{response_id}/{n}", f"{response_id}/{n}", "rating", s) for n, s in enumerate(scores)]
        assert self.feedback.add("acme", pieces) == ["joined"] * len(scores)
        return session_id, response_id

    def leased(self, version: int = 3) -> list[Any]:
        return self.queue.consumer.lease_groups(50, trained_version=version, max_staleness=9).groups


@pytest.fixture
def world(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[World]:
    found = World(tokenizer, tmp_path)
    yield found
    found.queue.close()


def test_each_turn_goes_once_with_its_exact_ids(world: World) -> None:
    session_id, _ = world.answered(1.0, 0.25, user="jane")
    world.answered(0.5, user="joe")
    assert world.feed().emit()["put"] == 0  # feedback may still come
    world.recordings.clock.now_s += 61
    assert world.feed().emit()["put"] == 2
    assert world.feed().emit()["put"] == 0
    groups = {group[0].group_size: group for group in world.leased()}
    assert {group[0].group_id for group in groups.values()} == {"run/online/0", "run/online/1"}
    pair, kept = groups[2], world.recordings.store.read(session_id)
    assert [t.total_reward for t in pair] == [1.0, 0.25]
    assert [(t.source, t.consent, t.verdict) for t in pair] == [("online", True, "pass"), ("online", True, "fail")]
    for trajectory, recorded in zip(pair, kept.answers, strict=True):
        assert trajectory.tokens[trajectory.loss_mask].tobytes() == recorded.tokens
        assert trajectory.behavior_logprobs[trajectory.loss_mask].tobytes() == recorded.logprobs
        assert kept.turns[0].tokens == np.asarray(trajectory.tokens[~trajectory.loss_mask], "<i4").tobytes()
        trajectory.validate()


def test_a_guard_that_fails_holds_a_turn_back_until_it_can_judge_it(world: World) -> None:
    class Failing:
        def __init__(self) -> None:
            self.verdict = Verdict.ERROR

        def judged(self, conversations: Sequence[Messages]) -> list[Verdict]:
            assert [[m["role"] for m in messages] for messages in conversations] == [["user", "assistant"]]
            return [self.verdict]

    world.answered(1.0)
    world.recordings.clock.now_s += 61
    guard = Failing()
    feed = world.feed(guard=guard)
    assert feed.emit() == {"not judged: a guard failed": 1}
    guard.verdict = Verdict.BLOCK
    assert feed.emit() == {"blocked by a guard": 1}
    guard.verdict = Verdict.FLAG
    assert feed.emit()["put"] == 1


@pytest.mark.parametrize("where", ["before the number", "before the group", "after the group"])
def test_a_kill_neither_loses_nor_doubles_a_turn(world: World, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world.answered(1.0)
    world.recordings.clock.now_s += 61
    feed, producer = world.feed(), world.queue.producer

    class Killed(Exception):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    if where == "before the number":
        monkeypatch.setattr(feed, "_written", killed)
    elif where == "before the group":
        monkeypatch.setattr(producer, "put", killed)
    else:
        real = producer.put

        def put_and_die(*arguments: Any, **fields: Any) -> Any:
            real(*arguments, **fields)
            raise Killed

        monkeypatch.setattr(producer, "put", put_and_die)
    with pytest.raises(Killed):
        feed.emit()
    monkeypatch.undo()
    assert world.feed().emit()["put"] == (0 if where == "after the group" else 1)
    world.recordings.clock.now_s += 61
    assert world.feed().emit()["put"] == 0
    assert [group[0].group_id for group in world.leased()] == ["run/online/0"]


def test_a_withdrawal_reaches_the_queue_before_the_next_batch(world: World) -> None:
    assert world.recordings.database is not None
    withdrawn, _ = world.answered(1.0, user="jane")
    kept, _ = world.answered(0.5, user="joe")
    world.recordings.clock.now_s += 61
    assert world.feed().emit()["put"] == 2
    names = [group[0].group_id for group in world.leased()]
    assert withdrawn_groups(world.recordings.database, names) == set()
    groups_trained(world.recordings.database, names, 7)
    groups_trained(world.recordings.database, names, 8)
    world.recordings.store.withdraw(tenant="acme", user="jane")
    assert len(withdrawn_groups(world.recordings.database, names)) == 1
    assert withdrawn_groups(world.recordings.database, ["run/online/77"]) == {"run/online/77"}  # nobody wrote it down
    uses = world.recordings.datasets().uses([withdrawn, kept])
    assert [found["versions"] for found in uses.values()] == [[7], [7]]


def test_a_withdrawal_between_the_number_and_the_group(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.answered(1.0, user="jane")
    world.recordings.clock.now_s += 61
    feed = world.feed()
    monkeypatch.setattr(feed, "_built", lambda *_, real=feed._built: world.recordings.store and real(*_))
    real_written = feed._written

    def withdrawn_first(*arguments: Any) -> bool:
        world.recordings.store.withdraw(tenant="acme", user="jane")
        return real_written(*arguments)

    monkeypatch.setattr(feed, "_written", withdrawn_first)
    assert feed.emit()["put"] == 0
    assert world.leased() == []


def test_what_is_no_sample_stays_out(world: World) -> None:
    world.answered(1.0, user="jane")
    world.recordings.clock.now_s += 61
    assert world.feed(temperature=0.7).emit() == {"too few exact samples": 1}
    assert world.feed(min_answers=2).emit() == {"too few exact samples": 1}
    assert world.feed(max_tokens=5).emit() == {"longer than learner.sequence_length": 1}
    assert world.feed(pace=Pace(0, 1, 0)).emit()["put"] == 0  # the run is over
    assert world.feed().emit()["put"] == 1


def test_an_agents_session_waits_for_its_end_and_trains_all_answers(world: World) -> None:
    world.feedback.start("acme", "", "episode")
    answer(world.recordings, session="episode")
    world.answered(1.0, session="episode")
    world.recordings.clock.now_s += 61
    assert world.feed().emit() == {"not ended": 1}
    world.feedback.end("acme", "", "episode")
    assert world.feed().emit()["put"] == 1

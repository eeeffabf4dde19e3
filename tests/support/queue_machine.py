"""What workers, learners and people may do to a queue and to its model, in any order."""

from __future__ import annotations

import time

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from learner_jax.contracts.trajectory import encode_group
from serving_bridge.queue.staleness import Pace
from tests.support.queue_model import Saved
from tests.support.queue_world import (
    CLAIM_S,
    IN_CHARGE,
    LEARNERS,
    LEASE_S,
    MAX_AGE_S,
    SWEPT_S,
    WORKERS,
    Doom,
    QueueWorld,
)

learners, workers = st.sampled_from([IN_CHARGE, IN_CHARGE, *LEARNERS]), st.sampled_from(WORKERS)


class QueueMachine(QueueWorld):
    """Claims, groups, leases, checkpoints and deaths. Rules that do several things at once are the common cases."""

    # Workers.

    @initialize(count=st.integers(0, 4), data=st.data())
    def begin(self, count: int, data: st.DataObject) -> None:
        """Groups of one call, whose long payloads share a file: what most steps need to do anything."""
        self.model.next_prompt = count
        self.hub.producer.claim_prompts("ann", count, Pace(4, 4, 9), served_step=9)
        self.model.claims = dict.fromkeys(range(count), ("ann", self.model.now_s + CLAIM_S))
        if count:
            self._put([self._group(index, 1, data) for index in range(count)], 0, "ann")

    @precondition(lambda self: len(self.model.claims) < 4)
    @rule(worker=workers, limit=st.integers(1, 4), served=st.integers(0, 3), lag=st.integers(0, 2))
    def claim(self, worker: str, limit: int, served: int, lag: int) -> None:
        pace = Pace(max_staleness=lag, groups_per_step=2, total_steps=6)
        self._both(
            lambda: self.hub.producer.claim_prompts(worker, limit, pace, served_step=served),
            lambda: self.model.claim(worker, limit, pace, served),
        )

    @precondition(lambda self: self.model.claims)
    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        self._both(lambda: self.hub.producer.renew_claims(worker), lambda: self.model.renew(worker))

    @precondition(lambda self: self.model.claims)
    @rule(worker=workers)
    def hand_on(self, worker: str) -> None:
        self._both(lambda: self.hub.producer.hand_on_claims(worker), lambda: self.model.hand_on(worker))

    @precondition(lambda self: self.model.claims)
    @rule(worker=workers, data=st.data())
    def give_up(self, worker: str, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.model.claims)))
        self._both(
            lambda: self.hub.producer.release_claim(index, worker=worker), lambda: self.model.release(index, worker)
        )

    @precondition(lambda self: self.model.claims)
    @rule(priority=st.integers(-1, 1), oldest=st.integers(0, 3), data=st.data())
    def put_what_was_claimed(self, priority: int, oldest: int, data: st.DataObject) -> None:
        claims = self.model.claims
        worker = data.draw(st.sampled_from(sorted({holder for holder, _ in claims.values()})))
        own = sorted(index for index, (holder, _) in claims.items() if holder == worker)
        indices = data.draw(st.lists(st.sampled_from(own), min_size=1, max_size=3))
        self._put([self._group(index, oldest, data) for index in indices], priority, worker)

    @precondition(lambda self: len(self.model.among("ready", "leased")) < 3)
    @rule(worker=workers, oldest=st.integers(0, 3), data=st.data())
    def claim_and_put(self, worker: str, oldest: int, data: st.DataObject) -> None:
        """The common case: several groups in one call, whose long payloads share a file."""
        pace = Pace(max_staleness=2, groups_per_step=2, total_steps=9)
        before = self.model.next_prompt
        self._both(
            lambda: self.hub.producer.claim_prompts(worker, 3, pace, served_step=9),
            lambda: self.model.claim(worker, 3, pace, 9),
        )
        new = [index for index in range(before, self.model.next_prompt) if self.model.claims[index][0] == worker]
        if new:
            self._put([self._group(index, oldest, data) for index in new], 0, worker)

    @rule(worker=st.none() | workers, indices=st.lists(st.integers(0, 12), min_size=1, max_size=2), data=st.data())
    def put_anything(self, worker: str | None, indices: list[int], data: st.DataObject) -> None:
        """Of prompts that others claimed, that ended long ago, or that nobody claimed yet."""
        self._put([self._group(index, 1, data) for index in indices], 0, worker)

    # Learners.

    @precondition(lambda self: self.model.among("ready", "leased"))
    @rule(
        number=learners,
        count=st.integers(1, 3),
        version=st.integers(0, 4),
        lag=st.integers(0, 4),
        by_name=st.booleans(),
    )
    def lease(self, number: int, count: int, version: int, lag: int, by_name: bool) -> None:
        number = self._who(number)
        consumer, learner = self.seats[number].consumer, self.learners[number]

        def real() -> tuple[list[str], int]:
            if by_name:
                named = consumer.lease(count, trained_version=version, max_staleness=lag)
                groups = [self.hub.consumer.read([group_id]).groups[group_id] for group_id in named.group_ids]
                assert named.num_bytes == [len(encode_group(group)) for group in groups]
                return [self._known(group) for group in groups], named.num_dropped_stale
            report = consumer.lease_groups(count, trained_version=version, max_staleness=lag)
            return [self._known(group) for group in report.groups], report.num_dropped_stale

        def model() -> tuple[list[str], int]:
            leased, dropped = self.model.lease(learner, count, trained_version=version, max_staleness=lag)
            self.may_leak |= dropped > 0
            return [group.group_id for group in leased], dropped

        self._both(real, model, learner=number)

    @precondition(lambda self: self.model.among("ready"))
    @rule(number=learners, count=st.integers(1, 2))
    def lease_and_train(self, number: int, count: int) -> None:
        """The common case; nothing is too old."""
        number = self._who(number)
        self.lease(number, count, version=0, lag=9, by_name=False)
        self._train(number, list(self.learners[number].leases)[:count])

    @precondition(lambda self: self.model.among("ready"))
    @rule(number=learners, count=st.integers(1, 2), restarts=st.booleans())
    def lose_leases(self, number: int, count: int, restarts: bool) -> None:
        """A learner is slow, another one of its turn takes what it had, and then the first goes on as if it had it.

        A restart in between makes the groups as new: they have all their tries again.
        """
        number = self._who(number)
        if restarts:
            self.lease(number, count, version=0, lag=9, by_name=False)
            self.start(number)
        self._died(1 - number)
        self.lease(number, count, version=0, lag=9, by_name=False)
        lost = list(self.learners[number].leases)
        self.time_passes(LEASE_S + 1)
        self.lease(1 - number, count, version=0, lag=9, by_name=False)
        self._train(number, lost[:count])

    @precondition(lambda self: self.model.among("trained"))
    @rule(number=learners)
    def save_and_acknowledge(self, number: int) -> None:
        """The common case."""
        number = self._who(number)
        self.save(number)
        self._acknowledge(number, list(self.saved.consumed))

    @precondition(lambda self: self._has_leases())
    @rule(number=learners, data=st.data())
    def train(self, number: int, data: st.DataObject) -> None:
        """On what is leased; now and then on what is not, or on one group twice."""
        number = self._who(number)
        known = list(self.learners[number].leases)
        group_ids = data.draw(st.lists(st.sampled_from(known), unique=True, max_size=3)) if known else []
        if self.model.groups and data.draw(st.integers(0, 7)) == 0:
            group_ids.append(data.draw(st.sampled_from(sorted(self.model.groups))))
        self._train(number, group_ids)

    def _train(self, number: int, group_ids: list[str]) -> None:
        steps, version = self.model.completed_steps + 1, self.model.trained_version + 1

        def model() -> None:
            self.model.train(self.learners[number], group_ids, steps, version)
            assert not self.history & set(group_ids), "trained on twice"
            self.history |= set(group_ids)

        self._both(
            lambda: self.seats[number].consumer.mark_trained(group_ids, completed_steps=steps, trained_version=version),
            model,
            learner=number,
        )

    @precondition(lambda self: self._has_leases())
    @rule(number=learners, for_good=st.booleans(), data=st.data())
    def give_back(self, number: int, for_good: bool, data: st.DataObject) -> None:
        number = self._who(number)
        learner, consumer = self.learners[number], self.seats[number].consumer
        group_id = data.draw(st.sampled_from(list(learner.leases) or sorted(self.model.groups)))
        real = consumer.bury if for_good else consumer.reject
        self._both(
            lambda: real(group_id, "a reason"),
            lambda: self.model.give_back(learner, group_id, for_good=for_good),
            learner=number,
        )

    @precondition(lambda self: self.model.among("trained"))
    @rule(number=learners)
    def save(self, number: int) -> None:
        """A checkpoint is committed; one of a learner that was replaced is none."""
        number = self._who(number)
        if self.learners[number].turn == self.model.turn:
            assert self.seats[number].consumer.prompt_cursor() == self.model.next_prompt
            consumed = tuple(group.group_id for group in self.model.among("trained"))
            self.saved = Saved(self.history, consumed, self.model.completed_steps, self.model.next_prompt)

    @precondition(lambda self: self.saved.consumed)
    @rule(number=learners, data=st.data())
    def acknowledge(self, number: int, data: st.DataObject) -> None:
        """A part of what the newest checkpoint holds, and groups that are not trained, which stay as they are."""
        number = self._who(number)
        held = data.draw(st.lists(st.sampled_from(self.saved.consumed), max_size=2)) if self.saved.consumed else []
        others = [g.group_id for g in self.model.groups.values() if g.state != "trained"]
        wrong = data.draw(st.lists(st.sampled_from(sorted(others)), max_size=2)) if others else []
        self._acknowledge(number, [*held, *wrong])

    def _acknowledge(self, number: int, group_ids: list[str]) -> None:
        self._both(
            lambda: self.seats[number].consumer.acknowledge(group_ids),
            lambda: self.model.acknowledge(self.learners[number], group_ids),
            learner=number,
        )

    @precondition(lambda self: self.model.among("leased", "trained"))
    @rule(number=learners)
    def start(self, number: int) -> None:
        """A learner takes over and goes on from the newest checkpoint; what came after that is trained on again."""
        number = self._who(number)
        consumer, learner, saved = self.seats[number].consumer, self.learners[number], self.saved
        assert consumer.take_over() == self.model.take_over(learner)

        def model() -> None:
            self.model.recover(learner, saved)
            self.history = saved.history

        self._both(
            lambda: consumer.recover(
                saved.consumed, completed_steps=saved.completed_steps, prompt_cursor=saved.prompt_cursor
            ),
            model,
            learner=number,
        )
        if self.learners[number] is learner and self.clock.now_s > time.time() + SWEPT_S:
            self.may_leak = False

    @precondition(lambda self: not self.model.finished)
    @rule(number=learners)
    def finish(self, number: int) -> None:
        number = self._who(number)
        self._both(self.seats[number].consumer.finish, lambda: self.model.finish(self.learners[number]), learner=number)

    # People, time and death.

    @precondition(lambda self: self.model.among("dead"))
    @rule(named=st.booleans())
    def requeue(self, named: bool) -> None:
        group_ids = [group.group_id for group in self.model.among("dead")] if named else None
        self._both(lambda: sorted(self.hub.admin.requeue(group_ids)), lambda: sorted(self.model.requeue(group_ids)))

    @rule(seconds=st.sampled_from([1.0, 30.0, LEASE_S + 1, MAX_AGE_S + 1, SWEPT_S + 100]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.model.now_s += seconds

    @precondition(lambda self: self.model.groups and not self.doom)
    @rule(doom=st.sampled_from(["before", "after"]))
    def the_next_one_dies(self, doom: Doom) -> None:
        self.doom = doom

    @precondition(lambda self: self._has_leases())
    @rule(number=learners)
    def a_learner_dies(self, number: int) -> None:
        number = self._who(number)
        self._died(number)

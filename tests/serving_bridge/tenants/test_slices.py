"""Slices of limits as gateways exchange them in the database, on both engines."""

from __future__ import annotations

import itertools

from serving_bridge.database import Session
from serving_bridge.tenants.records import Limits
from serving_bridge.tenants.slice_rows import beat, beats, due_share, exchange, give_up
from serving_bridge.tenants.slices import Slice, SlicePolicy
from tests.support.tenant_worlds import Deployment, deployment

__all__ = ["deployment"]  # a fixture

LIMITS = Limits(requests_per_minute=60, tokens_per_minute=6000, concurrency=8)
POLICY = SlicePolicy()


class Gateways:
    """Some gateways with one scope, and the database between them."""

    def __init__(self, deployment: Deployment, count: int) -> None:
        self.database = deployment.database()
        self.now = 0.0
        self.slices = {f"g{number}": Slice("tenant:acme", LIMITS, POLICY, 0.0) for number in range(count)}

    def exchange(self, name: str) -> bool:
        own = self.slices[name]
        offer = own.offer(self.now, 1.0)

        def work(session: Session):
            beat(session, name)
            return exchange(session, name, [offer])

        (grant,) = self.database.write(work)
        return own.granted(grant, self.now)

    def settle(self) -> None:
        for _ in range(6):
            for name in self.slices:
                self.exchange(name)

    def shares(self) -> list[float]:
        return [own.share for own in self.slices.values()]

    def written(self) -> float:
        ((total,),) = self.database.read(lambda session: session.execute("SELECT sum(share) FROM slices"))
        return total

    def units(self) -> float:
        """Tokens in all buckets and in the pool."""
        ((pool,),) = self.database.read(lambda session: session.execute("SELECT tokens FROM limit_pools"))
        return pool + sum(own.tokens.level for own in self.slices.values() if own.share > 0 and own.tokens is not None)


def test_one_gateway_gets_all_and_owes_what_it_spent_on_credit(deployment: Deployment) -> None:
    world = Gateways(deployment, 1)
    (own,) = world.slices.values()
    assert own.tokens is not None
    assert own.tokens.level == 750.0  # an eighth
    assert own.wait_s(700, 0.0) == 0.0
    own.take(700)
    assert own.wait_s(700, 0.0) > 0.0
    world.exchange("g0")
    assert own.share == 1.0
    assert own.tokens.level == 6000 - 700


def test_shares_follow_demand_and_never_exceed_the_whole(deployment: Deployment) -> None:
    world = Gateways(deployment, 3)
    names = list(world.slices)
    for number in range(30):
        world.now += 1.0
        for name, requests in zip(names, (6, 2, 0), strict=True):
            for _ in range(requests):
                world.slices[name].wait_s(10, world.now)
            if number > 0 or name != "g2":
                world.exchange(name)
            assert sum(world.shares()) <= world.written() + 1e-9
            assert world.written() <= 1.0 + 1e-9
    first, second, third = world.shares()
    assert first > 2 * second > 0
    assert 0 < third < second
    assert sum(world.shares()) > 0.97


def test_units_move_with_the_share_and_none_are_made(deployment: Deployment) -> None:
    world = Gateways(deployment, 2)
    world.exchange("g0")
    assert world.units() == 6000
    world.settle()
    assert abs(world.units() - 6000) < 1e-6
    assert all(abs(share - 0.5) < 0.02 for share in world.shares())


def test_a_share_is_smaller_before_it_is_written(deployment: Deployment) -> None:
    """The commit may fail: the gateway that offered less has less all the same, and the other gets nothing."""
    world = Gateways(deployment, 2)
    world.exchange("g0")
    world.exchange("g1")  # asks, and gets nothing yet
    assert world.exchange("g0")  # sees the other: it should make room at once
    before = world.slices["g0"].share
    offer = world.slices["g0"].offer(world.now, 1.0)
    assert offer.share == world.slices["g0"].share < before
    assert world.slices["g1"].share == 0.0


def test_a_running_answer_keeps_its_place(deployment: Deployment) -> None:
    world = Gateways(deployment, 2)
    world.exchange("g0")
    own = world.slices["g0"]
    for _ in range(7):
        own.take(1)
        own.enter()
    world.settle()
    assert own.share >= 7 / 8
    assert not world.slices["g1"].share > 1 / 8 + 1e-9


def test_a_gateway_that_is_gone_is_given_up_without_its_units(deployment: Deployment) -> None:
    world = Gateways(deployment, 2)
    world.settle()
    gone = world.slices.pop("g1")
    at_beat = world.database.read(beats)["g1"]
    assert not world.database.write(lambda session: give_up(session, "g1", at_beat - 1))
    assert world.written() > 0.98
    assert world.database.write(lambda session: give_up(session, "g1", at_beat))
    world.settle()
    assert world.shares() == [1.0]
    assert world.units() <= 6000 - gone.share * 6000 + 1e-6


def test_one_that_was_given_up_hears_of_it(deployment: Deployment) -> None:
    world = Gateways(deployment, 1)
    assert not world.database.write(lambda session: beat(session, "g0"))
    assert world.database.write(lambda session: beat(session, "g0"))
    world.database.write(lambda session: give_up(session, "g0"))
    assert not world.database.write(lambda session: beat(session, "g0"))


def test_an_idle_slice_is_given_back_with_what_is_in_it(deployment: Deployment) -> None:
    world = Gateways(deployment, 1)
    world.exchange("g0")
    (own,) = world.slices.values()
    own.wait_s(1000, 0.0)
    own.take(1000)
    own.give_back(0.0)
    world.now = POLICY.idle_s - 1
    assert not own.offer(world.now, 1.0).leaves
    world.now = POLICY.idle_s + 1
    offer = own.offer(world.now, 1.0)
    assert (offer.leaves, offer.share, offer.tokens) == (True, 0.0, 6000.0)
    world.database.write(lambda session: exchange(session, "g0", [offer]))
    assert world.database.read(lambda session: session.execute("SELECT tokens FROM limit_pools")) == [(6000.0,)]
    assert world.database.read(lambda session: session.execute("SELECT * FROM slices")) == []


def test_cut_off_it_keeps_a_part(deployment: Deployment) -> None:
    world = Gateways(deployment, 1)
    world.exchange("g0")
    (own,) = world.slices.values()
    own.cut_off(0.0)
    assert own.share == POLICY.cut_off_share
    assert own.tokens is not None
    assert own.tokens.level == 3000
    fresh = Slice("tenant:new", LIMITS, POLICY, 0.0)
    fresh.cut_off(0.0)
    assert fresh.tokens is not None
    fresh.take(750)
    assert 0 < fresh.wait_s(100, 0.0) < 10  # it fills, though nobody granted it


def test_changed_limits_are_taken_over_without_new_units() -> None:
    own = Slice("tenant:acme", LIMITS, POLICY, 0.0)
    own.take(750)
    own.update(Limits(tokens_per_minute=60_000), 0.0)
    assert own.requests is None
    assert own.tokens is not None
    assert (own.tokens.burst, own.tokens.level) == (60_000.0, 0.0)
    assert own.has_place()


def test_due_shares_add_up() -> None:
    for demands in itertools.product((0.0, 0.1, 3.0), repeat=3):
        dues = [due_share(own, [*demands[:i], *demands[i + 1 :]]) for i, own in enumerate(demands)]
        assert abs(sum(dues) - 1.0) < 1e-9
        assert min(dues) > 0.01
    assert due_share(0.0, []) == 1.0

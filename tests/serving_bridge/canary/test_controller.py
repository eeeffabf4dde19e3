"""The controller on both engines: steps, ends, commands, and what happens when somebody else acts."""

from __future__ import annotations

import pytest

from serving_bridge.canary import CanaryError, Rollout, State, StepPolicy, decide
from serving_bridge.database import DatabaseError
from serving_bridge.registry import NotHolderError, RegistryError, RegistryLease
from tests.support.canary_world import NAMESPACE, POLICY, CanaryWorld, canary_world

__all__ = ["canary_world"]  # a fixture


def to_the_end(world: CanaryWorld, controller=None, *, looks: int = 40) -> Rollout:
    controller = world.start() if controller is None else controller
    for _ in range(looks):
        world.pass_time()
        rollout = controller.look()
        assert rollout is not None
        if not rollout.is_open:
            return rollout
        step, policy = rollout.policy.steps[rollout.state.step], rollout.policy
        share = step.traffic_share * policy.share_of(step)
        assert world.agreement() == (rollout.phase, world.candidate, world.stable, share, step.shadow)
    raise AssertionError(f"not at its end: {rollout.reason}, {rollout.state.step}")


def test_a_good_candidate_becomes_stable_and_every_decision_replays(canary_world: CanaryWorld) -> None:
    world = canary_world
    world.start()
    assert world.stage(world.candidate) == "shadow"
    rollout = to_the_end(world, world.controller("controller"))
    assert world.agreement() == ("promoted", None, world.candidate, 0.0, 0.0)
    assert world.index.aliases.current(NAMESPACE)["previous"] == world.stable
    assert world.stage(world.candidate) == "stable"
    stages = [event.body.get("new") for event in world.index.events(NAMESPACE, world.candidate)]
    assert stages[-3:] == ["shadow", "canary", "stable"]
    decisions = world.rollouts.decisions(rollout.rollout)
    assert rollout.reason == decisions[-1].record.decision.reasons[0]
    assert [one.look for one in decisions] == list(range(1, rollout.looks + 1))
    state = State(until=rollout.first)
    for one in decisions:
        state, decision = decide(rollout.policy, state, one.record.look)
        assert decision == one.record.decision
    assert state == rollout.state


BY_TENANTS = POLICY.model_copy(
    update={
        "steps": (
            StepPolicy(share=1.0, tenants=("t0",), traffic=0.5, min_samples=50, min_time_s=60.0),
            POLICY.steps[-1],
        )
    }
)


def answered(world: CanaryWorld) -> set[str]:
    """Tenants that the canary has answered."""
    return {row[4] for row in world.log.after(NAMESPACE, 0) if row[2] == "canary"}


def test_whole_tenants_come_one_after_the_other_and_nobody_who_was_not_asked(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.start(policy=BY_TENANTS)
    split = world.index.aliases.traffic(NAMESPACE)
    assert (split.tenants, split.within, split.canary_share) == (("t0",), 0.7, 0.35)
    world.pass_time()
    assert answered(world) == {"t0"}
    rollout = controller.look()
    assert rollout is not None
    assert rollout.state.step == 1
    world.pass_time()
    assert answered(world) == {"t0", "t1"}
    to_the_end(world, controller)
    assert world.agreement() == ("promoted", None, world.candidate, 0.0, 0.0)
    assert world.index.aliases.traffic(NAMESPACE).tenants == ()


@pytest.mark.parametrize(("hurt", "answered_before"), [("t0", {"t0"}), ("t1", {"t0", "t1"})])
def test_one_tenant_that_is_hurt_takes_the_candidate_back(
    canary_world: CanaryWorld, hurt: str, answered_before: set[str]
) -> None:
    world = canary_world
    world.errors["canary"], world.hurt = 0.6, hurt
    rollout = to_the_end(world, world.start(policy=BY_TENANTS), looks=10)
    assert rollout.phase == "rolled_back"
    assert f"error for tenant {hurt} is worse" in rollout.reason
    assert answered(world) == answered_before, "where the first tenant is hurt, no other gets the candidate"
    assert world.agreement()[1:] == (None, world.stable, 0.0, 0.0)


def test_a_bad_candidate_is_back_within_one_look(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.start()
    world.pass_time()
    rollout = controller.look()
    assert rollout is not None
    assert rollout.policy.steps[rollout.state.step].share == 0.2
    world.errors["canary"] = 0.9
    rollout = to_the_end(world, controller, looks=3)
    assert world.agreement() == ("rolled_back", None, world.stable, 0.0, 0.0)
    assert rollout.reason.startswith("error is worse: more by at least")
    assert world.stage(world.candidate) == "rolled_back"
    with pytest.raises(RegistryError, match="is rolled_back"):
        controller.start(world.candidate, POLICY, actor="ann", reason="again")
    assert world.rollouts.release(NAMESPACE).rollout == rollout.rollout
    with pytest.raises(CanaryError, match="is not held"):
        world.rollouts.release(NAMESPACE)


def test_an_abort_beside_another_wish_is_not_forgotten(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.start()
    world.rollouts.ask(NAMESPACE, "pause")
    hold = controller.hold

    def abort_comes_in_between() -> RegistryLease:
        controller.hold = hold  # type: ignore[method-assign]
        world.rollouts.ask(NAMESPACE, "abort")
        with pytest.raises(CanaryError, match="is being ended"):
            world.rollouts.ask(NAMESPACE, "pause")
        return hold()

    controller.hold = abort_comes_in_between  # type: ignore[method-assign]
    controller.obey()
    assert world.agreement() == ("aborted", None, world.stable, 0.0, 0.0)


def test_pause_resume_and_abort(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.start()
    with pytest.raises(CanaryError, match="is running already"):
        world.rollouts.ask(NAMESPACE, "resume")
    world.rollouts.ask(NAMESPACE, "pause")
    for _ in range(5):
        world.pass_time()
        rollout = controller.look()
    assert rollout is not None
    assert (rollout.phase, rollout.state.step, rollout.state.spent_s) == ("paused", 0, 0.0)
    world.rollouts.ask(NAMESPACE, "resume")
    world.pass_time()
    rollout = controller.look()
    assert rollout is not None
    assert (rollout.phase, rollout.state.step) == ("running", 1)
    world.rollouts.ask(NAMESPACE, "abort")
    controller.obey()
    assert world.agreement() == ("aborted", None, world.stable, 0.0, 0.0)
    assert world.stage(world.candidate) == "passed", "it may be tried again"
    assert controller.look() is None
    with pytest.raises(CanaryError, match="no rollout under way"):
        world.rollouts.ask(NAMESPACE, "pause")
    world.start(controller)


def test_one_controller_at_a_time_and_the_slow_one_is_fenced_off(canary_world: CanaryWorld) -> None:
    world = canary_world
    slow, quick = world.start(world.controller("slow")), world.controller("quick")
    world.pass_time(5)
    with pytest.raises(NotHolderError, match="slow holds the aliases"):
        quick.look()
    world.clock.now_s += 30
    world.pass_time()
    assert quick.look() is not None
    world.clock.now_s -= 90  # also where its clock says that the lease is its own still
    with pytest.raises(NotHolderError):
        slow.look()
    assert world.rollouts.latest(NAMESPACE)[0].looks == 1


def test_what_somebody_does_by_hand_ends_it_and_stays(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.start()
    lease = world.index.aliases.take_lease(NAMESPACE, "ann", 60, by_force=True)
    world.index.aliases.move(lease, {"canary": None}, actor="ann", reason="I know better")
    world.index.aliases.release_lease(lease)
    controller.forget()
    rollout = controller.look()
    assert rollout is not None
    assert (rollout.phase, rollout.reason) == ("aborted", f"somebody moved canary to nothing, it was {world.candidate}")


def test_files_that_are_damaged_are_never_promoted(canary_world: CanaryWorld) -> None:
    world = canary_world
    world.problems = ["weights: a byte was flipped"]
    with pytest.raises(RegistryError, match="a byte was flipped"):
        world.start()
    assert world.agreement() == (None, None, world.stable, 0.0, 0.0)
    world.problems = []
    controller = world.start()
    world.problems = ["weights: a byte was flipped"]
    rollout = to_the_end(world, controller)
    assert (rollout.phase, world.agreement()[1:4]) == ("rolled_back", (None, world.stable, 0.0))
    assert "it can't go on: entry 2 is not as it was registered" in rollout.reason


def test_observations_that_can_not_be_read_hold_and_then_fail(
    canary_world: CanaryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = canary_world
    controller = world.start()

    def cut(work: object) -> None:
        raise DatabaseError("cut off")

    monkeypatch.setattr(world.log._db, "read", cut)
    verdicts = []
    for _ in range(3):
        world.clock.now_s += 60
        rollout = controller.look()
        assert rollout is not None
        verdicts.append(rollout.phase)
    assert verdicts == ["running", "running", "rolled_back"]
    assert rollout.reason.startswith("no observations in 3 looks in a row")


def test_starts_that_are_refused_change_nothing(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.controller()
    with pytest.raises(CanaryError, match="is stable already"):
        controller.start(world.stable, POLICY, actor="ann", reason="x")
    with pytest.raises(RegistryError, match="has no entry 9"):
        controller.start(9, POLICY, actor="ann", reason="x")
    world.start(controller)
    with pytest.raises(CanaryError, match="rollout 1 of entry 2 is under way"):
        controller.start(world.candidate, POLICY, actor="ann", reason="x")
    assert len(world.rollouts.latest(NAMESPACE, limit=9)) == 1


def test_rolling_back_a_rollback_is_one_more_move(canary_world: CanaryWorld) -> None:
    world = canary_world
    controller = world.start()
    to_the_end(world, controller)
    assert controller.take_back(actor="ann", reason="complaints") == world.stable
    assert (world.stage(world.candidate), world.stage(world.stable)) == ("retired", "stable")
    assert controller.take_back(actor="ann", reason="it was the network") == world.candidate
    assert world.index.aliases.current(NAMESPACE) == {"stable": world.candidate, "previous": world.stable}


def test_two_controllers_at_once_decide_each_look_once(canary_world: CanaryWorld) -> None:
    """The second finds that the look was decided while it looked, and looks again."""
    world = canary_world
    first = world.start(world.controller("one"))
    world.pass_time()
    real = first._place.source.seen

    def slow(*given, **more):
        world.rollouts.ask(NAMESPACE, "pause")
        first._place.source.seen = real  # type: ignore[method-assign]
        return real(*given, **more)

    first._place.source.seen = slow  # type: ignore[method-assign]
    rollout = first.look()
    assert rollout is not None
    assert (rollout.phase, rollout.looks) == ("paused", 1), "what was asked meanwhile is done before the look counts"

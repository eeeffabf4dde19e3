"""The order of a save and of what follows it, with everything behind it noted instead of done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner_jax.checkpoints import CheckpointError
from learner_jax.hosts import Hosts
from learner_jax.ledger import Ledger
from learner_jax.loop import saving as saving_module
from learner_jax.loop.saving import Saving, Start


class World:
    """Checkpoints and queue at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.did: list[Any] = []
        self.saving = False
        self.latest: int | None = None
        self.failure: Exception | None = None

    def take_over(self) -> int:
        self.did.append("takes over")
        return 3

    def bring_copy(self) -> int | None:
        self.did.append("brings a copy")
        return None

    def keep_copy(self, step: int) -> None:
        self.did.append(f"keeps a copy of {step}")

    def latest_step(self) -> int | None:
        self.did.append("looks")
        return self.latest

    def check(self, step: int) -> bool:
        self.did.append(f"checks {step}")
        return True

    def reload(self) -> None:
        self.did.append("reloads")

    def recover(self, consumed: Any, **where: int) -> None:
        self.did.append(("recovers", tuple(consumed), where))

    def prompt_cursor(self) -> int:
        return 17

    def save(self, state: Any, position: Any, *, reference: Any) -> None:
        self.saving = True
        self.did.append(("saves", state, position.completed_steps, reference))

    def is_saving(self) -> bool:
        return self.saving

    def wait(self, timeout_s: float) -> None:
        self.saving = False
        self.did.append(f"waits {timeout_s:g}")
        if self.failure is not None:
            raise self.failure

    def acknowledge(self, groups: Any) -> None:
        self.did.append(("forgets", tuple(groups)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def log() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def saving(world: World, log: list[Any], monkeypatch: pytest.MonkeyPatch) -> Saving:
    monkeypatch.setattr(saving_module, "crash_point", lambda name: world.did.append(f"point {name}"))
    anything: Any = world
    return Saving(
        anything, anything, Hosts(), Ledger(), max_wait_s=9.0, log=lambda event, **fields: log.append((event, fields))
    )


def step(saving: Saving, number: int) -> None:
    ledger = saving._ledger
    if ledger.life == 0:
        ledger.begun(1)
        ledger.published(0)
    ledger.step_completed()
    ledger.published(ledger.version + 1)
    ledger.trained_on([f"run/{number}/0"])


def save(saving: Saving) -> None:
    saving.save("state", lambda: saving.position(kl_coefficient=0.0), reference="moved")  # type: ignore[arg-type]


def test_the_queue_is_taken_over_first_and_a_life_begins_after(saving: Saving, world: World) -> None:
    assert saving.begin() is None
    assert world.did == ["takes over", "brings a copy", "looks", "reloads"]
    assert saving._ledger.life == 3
    saving.recover(None)
    assert world.did[-1] == ("recovers", (), {"completed_steps": 0, "prompt_cursor": 0})


def test_the_newest_checkpoint_is_checked_and_gone_on_from(saving: Saving, world: World) -> None:
    world.latest = 4
    assert saving.begin() == Start(4, True)
    assert world.did == ["takes over", "brings a copy", "looks", "checks 4", "keeps a copy of 4", "reloads"]


def test_a_save_is_confirmed_before_the_next_one_begins(saving: Saving, world: World, log: list[Any]) -> None:
    step(saving, 1)
    save(saving)
    assert world.did == ["reloads", "point save", ("saves", "state", 1, "moved"), "point saving"]
    assert [(event, fields["step"]) for event, fields in log] == [("checkpoint", 1)]
    save(saving)  # the same step
    assert len(world.did) == 4
    step(saving, 2)
    world.did.clear()
    save(saving)
    assert world.did == [
        "waits 9", "point committed", ("forgets", ("run/1",)), "point acknowledged",
        "reloads", "point save", ("saves", "state", 2, "moved"), "point saving",
    ]  # fmt: skip


def test_a_save_that_is_not_proven_yet_is_asked_for_again_and_not_waited_for(saving: Saving, world: World) -> None:
    saving.confirm(wait=False)
    saving.confirm(wait=True)
    assert world.did == []
    step(saving, 1)
    save(saving)
    world.did.clear()
    saving.confirm(wait=False)
    assert world.did == []
    world.saving = False
    saving.confirm(wait=False)
    assert world.did == ["waits 9", "point committed", ("forgets", ("run/1",)), "point acknowledged"]
    saving.confirm(wait=True)
    assert len(world.did) == 4


def test_nothing_is_forgotten_for_a_save_that_failed(saving: Saving, world: World) -> None:
    step(saving, 1)
    save(saving)
    world.did.clear()
    world.failure = CheckpointError("no room")
    with pytest.raises(CheckpointError, match="^no room$"):
        saving.confirm(wait=True)
    assert world.did == ["waits 9"]


@pytest.mark.parametrize(("others", "refused"), [([1, 2], None), ([1, 3], 3), ([9, 1], 9)])
def test_a_step_of_another_run_at_or_beyond_is_not_written_over(
    others: list[int], refused: int | None, saving: Saving, world: World
) -> None:
    """Folders without a readable manifest: nobody's, so that they are not put aside."""
    for other in others:
        (world.directory / str(other)).mkdir()
    for number in (1, 2, 3):
        step(saving, number)
    if refused is None:
        save(saving)
        assert ("saves", "state", 3, "moved") in world.did
        return
    with pytest.raises(CheckpointError, match=rf"step 3 can't be saved: .* holds checkpoint {refused}, which this"):
        save(saving)
    assert world.did == []


def test_followers_raise_what_the_leader_found(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    follower: Any = SimpleNamespace(is_leader=False, agree=lambda value, what: [7, None])
    monkeypatch.setattr(saving, "_hosts", follower)
    assert saving._from_leader(lambda: 1 / 0, "what") == 7
    follower.agree = lambda value, what: [None, "no room"]
    with pytest.raises(CheckpointError, match="^no room$"):
        saving._from_leader(lambda: 1 / 0, "what")


def test_followers_wait_for_their_own_part_of_a_save_and_change_no_queue(
    saving: Saving, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(saving, 1)
    save(saving)
    world.did.clear()
    follower: Any = SimpleNamespace(is_leader=False, agree=lambda value, what: [None, None])
    monkeypatch.setattr(saving, "_hosts", follower)
    saving.confirm(wait=True)
    assert world.did == ["waits 9", "point committed", "point acknowledged"]
    assert not saving._ledger.is_saving

"""Rows of rollouts and observations that somebody edited by hand: one clear error, and the controller waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving_bridge.canary import CanaryError, Service
from tests.support.canary_world import NAMESPACE, POLICY, CanaryWorld


@pytest.fixture
def world(tmp_path: Path) -> Any:
    found = CanaryWorld.of(tmp_path)
    found.fill()
    controller = found.controller()
    controller.start(found.candidate, POLICY, actor="ann", reason="better")
    controller.release()
    yield found
    for database in found.opened:
        database.close()


def _edit(world: CanaryWorld, statement: str) -> None:
    world.rollouts._db.write(lambda session: session.execute(statement))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE rollouts SET policy = '{'", "is none: its row was changed .*JSON"),
        ("UPDATE rollouts SET policy = '{\"interval_s\": -1}'", "is none: .*interval_s"),
        ("UPDATE rollouts SET state = '[]'", "is none: .*array"),
        ("UPDATE rollouts SET state = '{\"step\": 7}'", "it is at step 7, and its policy has 3"),
        (
            'UPDATE rollouts SET state = \'{"kept": [["joy", "canary", "", 0, 1, 1, 1]]}\'',
            "sums of joy, which is no metric",
        ),
        ("UPDATE rollouts SET asked = 'fly'", "asked is fly, expected one of pause, resume"),
    ],
)
def test_a_changed_rollout_is_one_clear_error_and_the_controller_waits(
    world: CanaryWorld, tmp_path: Path, statement: str, said: str
) -> None:
    _edit(world, statement)
    for read in (
        lambda: world.rollouts.open_one(NAMESPACE),
        lambda: world.rollouts.latest(NAMESPACE),
        lambda: world.rollouts.one(NAMESPACE, 1),
    ):
        with pytest.raises(CanaryError, match=f"rollout 1 of default {said}|{said}"):
            read()
    told: list[str] = []
    service = Service(
        world.place(),
        world.controller(),
        tmp_path,
        monotonic=world.clock,
        purge=lambda: None,
        log=lambda event, **fields: told.append(f"{event} {fields['error']}"),
    )
    assert service.turn() is None
    assert service.turn() is None
    assert len(told) == 1, "told once"
    assert "rollout 1 of default is none" in told[0]
    assert world.index.aliases.traffic(NAMESPACE).shadow_share == 0.5, "nothing was moved"


def test_an_observation_of_no_arm_counts_for_nobody(world: CanaryWorld) -> None:
    world.log._db.write(
        lambda session: session.execute(
            "INSERT INTO observations (at_s, namespace, kind, arm, version, tenant, conversation, shadow, measures) "
            "VALUES (0, 'default', 'answer', 'elsewhere', 1, 't', 'c', 0, '{\"error\": 1e999}')"
        )
    )
    seen = world.place().source.seen(
        NAMESPACE, 0, canary=2, stable=1, shadow=False, metrics=POLICY.metrics, cohort=None
    )
    assert seen.until >= 1
    assert seen.answers == (0, 0)

"""Online groups in the learner's loop: old ones, within a bound and a share of their own, with truncated weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.checkpoints.checkpoints import Checkpoints
from learner_jax.contracts import Trajectory
from learner_jax.loop.admission import admitted
from learner_jax.loop.learner import Learner
from learner_jax.settings import LearnerSettings, OnlineSettings
from learner_jax.settings.learner import KLSettings, LossSettings, PolicySettings
from serving_bridge.queue import MixedSource, TrajectoryQueue
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.composed_losses import gradients, make_engine, relative_difference
from tests.support.composed_losses import params as params
from tests.support.learner_runs import SETTINGS, Records, fill
from tests.support.trajectories import make_group

TRUNCATED = LossSettings(policy=PolicySettings(objective="decoupled_ppo", importance="truncated", importance_cap=2.0))


def online(group_id: str, **fields: Any) -> list[Trajectory]:
    return [dataclasses.replace(t, source="online") for t in make_group(group_id, rewards=[0.0, 1.0], **fields)]


def test_each_source_has_its_own_bound() -> None:
    groups = [online("run/online/0", version=3), make_group("run/1", version=3), online("run/online/2", version=1)]
    taken, refused = admitted(groups, trained_version=7, max_staleness=2, online_staleness=4)
    assert [group[0].group_id for group in taken] == ["run/online/0"]
    assert set(refused) == {"run/1", "run/online/2"}
    mixed = [dataclasses.replace(t, source=s) for t, s in zip(groups[0], ("online", "rollout"), strict=True)]
    assert admitted([mixed], trained_version=7, max_staleness=2, online_staleness=4)[0] == []  # nobody's claim alone
    assert admitted(groups[:1], trained_version=7, max_staleness=2)[0] == []


def test_a_run_takes_its_share_within_their_bound(params: Any, tmp_path: Path) -> None:
    """Of six online groups of version 1 one is withdrawn, and four come in time; the last is too old."""
    loss = TRUNCATED.model_copy(update={"kl": KLSettings()})
    same = {name: getattr(SETTINGS, name) for name in ("steps", "groups_per_step", "sequence_length", "checkpoint")}
    engine = make_engine(loss, online=OnlineSettings(share=0.5, max_staleness=3), **same)
    fill(tmp_path, 12)
    log = Records()
    queue, other = TrajectoryQueue(tmp_path / "state.db"), TrajectoryQueue(tmp_path / "online.db")
    for number in range(6):
        other.producer.put([(number, online(f"run/online/{number}", seed=number))])
    trained: list[tuple[list[str], int]] = []
    source = MixedSource(
        queue.consumer,
        other.consumer,
        run="run",
        per_step=engine.settings.online_groups,
        max_staleness=3,
        withdrawn=lambda ids: {name for name in ids if name == "run/online/1"},
        trained=lambda ids, version: trained.append((list(ids), version)),
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    try:
        Learner(
            engine, params, seed=0, source=source, publisher=VersionWriter(WeightStore(tmp_path / "weights", "test")),
            checkpoints=checkpoints, golden_prompts=[[1, 2, 3, 4]], max_staleness=100, log=log,
            should_stop=lambda: False,
        ).run()  # fmt: skip
    finally:
        checkpoints.close()
    steps = log.steps()
    assert [step["online_answers"] for step in steps] == [2, 2, 2, 2, 0, 0]  # another took the withdrawn one's place
    assert [step["online_groups"] for step in steps] == [1, 1, 1, 1, 0, 0]
    assert [step["online_staleness_max"] for step in steps] == [0, 1, 2, 3, 0, 0]
    assert [step["staleness_max"] for step in steps] == [0, 1, 2, 3, 4, 5]
    assert [step["online_reward"] for step in steps] == [0.5, 0.5, 0.5, 0.5, None, None]
    assert trained == [([f"run/online/{n}"], version) for n, version in ((0, 2), (2, 3), (3, 4), (4, 5))]
    progress = other.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped, progress.num_dead) == (4, 1, 1)
    assert queue.admin.progress().num_acknowledged == 8
    queue.close()
    other.close()


def test_an_old_answers_weight_is_cut_at_the_cap(params: Any) -> None:
    """Where the sampler of long ago found every token far less likely, the gradient is the cap times the plain one."""
    plain = LossSettings(policy=PolicySettings(objective="decoupled_ppo", importance="none"))
    group = [
        dataclasses.replace(
            t,
            behavior_logprobs=np.where(t.loss_mask, -60.0, 0.0).astype(np.float32),
            policy_version=np.where(t.loss_mask, 1, -1).astype(np.int32),
        )
        for t in online("run/online/0", answer_tokens=6)
    ]
    cut, metrics = gradients(make_engine(TRUNCATED), params, [group])
    whole, _ = gradients(make_engine(plain), params, [group])
    doubled = {path: 2.0 * np.asarray(gradient, np.float64) for path, gradient in whole.items()}
    assert relative_difference(cut, doubled) < 1e-5
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-5)  # advantages of a group add up to zero


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"online": {"share": 0.4}}, "no whole group"),
        ({"online": {"share": 0.5}}, "off-policy correction|a correction"),
        ({"online": {"share": 1.5}}, "less than or equal to 1"),
    ],
    ids=["share", "correction", "range"],
)
def test_settings_that_can_not_work(changes: dict[str, Any], why: str) -> None:
    base = SETTINGS.model_dump(exclude={"online"})
    with pytest.raises(ValueError, match=why):
        LearnerSettings.model_validate({**base, **changes})

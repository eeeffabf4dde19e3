"""The learner's loop on a real queue, weight store and Orbax: resume, effect once, staleness, bounded waits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.checkpoints.checkpoints import CheckpointError, Checkpoints
from learner_jax.contracts.model import hf_shapes
from learner_jax.loop.feed import StarvedError
from learner_jax.loop.learner import TrainingError
from learner_jax.settings.learner import (
    AdvantageSettings,
    GroupSettings,
    KLSettings,
    LossSettings,
    PolicySettings,
    ValueSettings,
)
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from serving_bridge.queue.consumer import QueueConsumer
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.weights.store import WeightStore
from tests.support.compilations import STEP_PROGRAMS, compiled_names
from tests.support.learner_runs import (
    SETTINGS,
    Crash,
    Records,
    assert_same_parameters,
    fill,
    final_parameters,
    run,
)
from tests.support.tiny_model import TINY, TINY_JSON
from tests.support.trajectories import make_group
from tests.support.whole_run import engine, params

__all__ = ["engine", "params"]  # fixtures


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that nothing happened to."""

    directory: Path
    outcome: Any
    log: Records


def finished(engine: Engine, params: Any, directory: Path) -> Finished:
    fill(directory, 12)
    return Finished(directory, *run(engine, params, directory))


@pytest.fixture(scope="module")
def whole(engine: Engine, params: Any, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(engine, params, tmp_path_factory.mktemp("whole"))


def test_runs_to_the_end_and_every_group_has_its_effect_once(whole: Finished) -> None:
    assert whole.outcome.reason == "finished"
    assert [record["step"] for record in whole.log.steps()] == [1, 2, 3, 4, 5, 6]
    progress = TrajectoryQueue(whole.directory / "state.db").admin.progress()
    assert (progress.num_acknowledged, progress.num_ready, progress.finished) == (12, 0, True)
    store = WeightStore(whole.directory / "weights", "test")
    assert [store.manifest(v).step for v in store.versions()] == [0, 1, 2, 3, 4, 5, 6]


def test_no_step_waits_for_a_program(params: Any, tmp_path: Path) -> None:
    """All are compiled before the loop first asks whether to go on."""
    fill(tmp_path, 12)
    engine = Engine(
        SETTINGS, TINY, objective=objective.reinforcement(SETTINGS.loss), temperature=1.0, devices=jax.devices()[:1]
    )
    ahead: list[str] = []
    with compiled_names() as names:
        outcome, _ = run(engine, params, tmp_path, should_stop=lambda: bool(ahead or ahead.extend(names)) and False)
    assert outcome.reason == "finished"
    assert set(ahead) >= STEP_PROGRAMS - {"add"}  # engines share the program of the sum
    assert not STEP_PROGRAMS & set(names[len(ahead) :])


CRASHES = {
    "before the first checkpoint": lambda r: r["event"] == "published" and r["step"] == 1,
    "between publishing and recording a step": lambda r: r["event"] == "published" and r["step"] == 4,
    "after a step": lambda r: r["event"] == "step" and r["step"] == 3,
    "right after a checkpoint began": lambda r: r["event"] == "checkpoint" and r["step"] == 4,
}


@pytest.mark.parametrize("point", CRASHES)
def test_resume_equals_the_uninterrupted_run_bit_by_bit(
    point: str, engine: Engine, params: Any, whole: Finished, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    fill(broken, 12)
    with pytest.raises(Crash):
        run(engine, params, broken, log=Records(CRASHES[point]))
    _, log = run(engine, params, broken)
    assert log.steps()[-1]["step"] == 6
    assert_same_parameters(broken, whole.directory)
    assert TrajectoryQueue(broken / "state.db").admin.progress().num_acknowledged == 12
    versions = WeightStore(broken / "weights", "test").versions()
    assert versions == sorted(set(versions))
    assert len(versions) > 7


@pytest.fixture(scope="module")
def rich() -> Engine:
    """With everything that a checkpoint must hold besides the policy: critic, KL controller, moving reference."""
    loss = LossSettings(
        advantage=AdvantageSettings(estimator="vtrace"),
        policy=PolicySettings(objective="policy_gradient", importance="none"),
        value=ValueSettings(model="separate"),
        kl=KLSettings(coefficient=0.05, target=0.01, horizon=2, reset_every=3),
    )
    changed = SETTINGS.model_copy(update={"loss": loss})
    return Engine(changed, TINY, objective=objective.reinforcement(loss), temperature=1.0, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def rich_whole(rich: Engine, params: Any, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(rich, params, tmp_path_factory.mktemp("rich"))


def test_critic_kl_controller_and_moved_reference_survive_a_crash(
    rich: Engine, params: Any, rich_whole: Finished, tmp_path: Path
) -> None:
    fill(tmp_path, 12)
    with pytest.raises(Crash):  # after the reset at step 3 and the checkpoint at step 4
        run(rich, params, tmp_path, log=Records(lambda r: r["event"] == "step" and r["step"] == 5))
    _, log = run(rich, params, tmp_path)
    coefficients = [record["kl_coefficient"] for record in rich_whole.log.steps()]
    assert len(set(coefficients)) > 3
    assert log.steps()[-1]["kl_coefficient"] == coefficients[-1]
    assert log.steps()[-1]["kl"] == rich_whole.log.steps()[-1]["kl"]
    assert_same_parameters(tmp_path, rich_whole.directory)


def test_the_reference_moves_when_that_is_scheduled(rich_whole: Finished) -> None:
    kl = [record["kl"] for record in rich_whole.log.steps()]
    assert kl[0] == pytest.approx(0.0, abs=1e-7)
    assert kl[3] == pytest.approx(0.0, abs=1e-7)
    assert min(kl[1], kl[2], kl[4], kl[5]) > 1e-6


def test_the_fleet_gets_the_policy_without_its_critic(rich_whole: Finished) -> None:
    store = WeightStore(rich_whole.directory / "weights", "test")
    names = {tensor.name for tensor in store.manifest(store.versions()[-1]).tensors}
    assert names == set(hf_shapes(TINY))
    assert {path[0] for path in final_parameters(rich_whole.directory)} == {"embed", "layers", "norm"}


def test_several_updates_per_batch_are_those_of_its_parts(params: Any, tmp_path: Path) -> None:
    changed = SETTINGS.model_copy(update={"minibatches": 2, "microbatch_rows": 2})
    chosen = objective.reinforcement(changed.loss)
    engine = Engine(changed, TINY, objective=chosen, temperature=1.0, devices=jax.devices()[:1])
    fill(tmp_path, 12)
    _, log = run(engine, params, tmp_path)
    assert [record["step"] for record in log.steps()] == [1, 2, 3, 4, 5, 6]
    state, _, _ = Checkpoints(tmp_path / "checkpoints", keep=2).restore(engine.init_state(params, seed=0))
    assert int(state.step) == 12


def test_a_ratio_of_exactly_one_on_older_tokens_ends_the_run(params: Any, tmp_path: Path) -> None:
    """The classic silent bug: behaviour log-probs recomputed by the learner instead of taken from the sampler."""
    sound = objective.reinforcement(SETTINGS.loss)

    def dishonest(stats: Any, batch: Any, scalars: Any) -> Any:
        recomputed = jax.lax.stop_gradient(stats.logprobs)
        return sound(stats, dataclasses.replace(batch, behavior_logprobs=recomputed), scalars)

    engine = Engine(
        SETTINGS.model_copy(update={"groups_per_step": 4, "microbatch_rows": 8}),
        TINY,
        objective=objective.Objective(dishonest),
        temperature=1.0,
        devices=jax.devices()[:1],
    )
    fill(tmp_path, 24)
    with pytest.raises(TrainingError, match=r"step 2: 16 tokens of versions older than 2 .* exactly 1"):
        run(engine, params, tmp_path)
    progress = TrajectoryQueue(tmp_path / "state.db").admin.progress()
    assert progress.completed_steps == 1


def test_a_batch_that_teaches_nothing_is_skipped_and_counted(params: Any, tmp_path: Path) -> None:
    loss = LossSettings(groups=GroupSettings(zero_variance="drop"))
    changed = SETTINGS.model_copy(update={"loss": loss, "steps": 4})
    engine = Engine(changed, TINY, objective=objective.reinforcement(loss), temperature=1.0, devices=jax.devices()[:1])
    queue = TrajectoryQueue(tmp_path / "state.db")
    queue.producer.put([(i, make_group(f"run/{i}", seed=i, rewards=[1.0, 1.0])) for i in range(8)])
    queue.close()
    outcome, log = run(engine, params, tmp_path)
    assert outcome.reason == "finished"
    assert [(r["empty"], r["skipped"], r["dropped_groups"]) for r in log.steps()] == [(1, 0, 2)] * 4
    for name in ("loss", "entropy", "clip_fraction", "effective_sample_share"):
        assert all(math.isnan(r[name]) for r in log.steps()), name
    assert [r["mismatch_max_abs_logprob"] for r in log.steps()] == [None] * 4
    got = final_parameters(tmp_path)
    for path, value in flatten_dict(params).items():
        np.testing.assert_array_equal(got[path], value)


def test_graceful_stop_leaves_a_checkpoint_and_goes_on(
    engine: Engine, params: Any, whole: Finished, tmp_path: Path
) -> None:
    fill(tmp_path, 12)
    first = Records()
    outcome, _ = run(engine, params, tmp_path, log=first, should_stop=lambda: len(first.steps()) >= 3)
    assert outcome.reason == "stopped"
    assert outcome.position.completed_steps == 3
    assert not TrajectoryQueue(tmp_path / "state.db").admin.progress().finished
    _, second = run(engine, params, tmp_path)
    assert [record["step"] for record in second.steps()] == [4, 5, 6]
    assert_same_parameters(tmp_path, whole.directory)


def test_the_queue_is_taken_over_before_a_checkpoint_is_chosen(
    engine: Engine, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a learner that still lives commits one and acknowledges it in between."""
    order: list[str] = []
    for owner, name in ((QueueConsumer, "take_over"), (Checkpoints, "latest_step"), (QueueConsumer, "recover")):
        real = getattr(owner, name)

        def noted(*arguments: Any, real: Any = real, name: str = name, **named: Any) -> Any:
            order.append(name)
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, noted)
    fill(tmp_path, 12)
    run(engine, params, tmp_path)
    assert order[:3] == ["take_over", "latest_step", "recover"]


def test_a_checkpoint_of_another_learner_is_neither_overwritten_nor_taken_for_its_own(
    engine: Engine, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 12)
    real = QueueConsumer.acknowledge

    def another_saves(queue: QueueConsumer, group_ids: Sequence[str]) -> None:
        real(queue, group_ids)
        (tmp_path / "checkpoints" / "4").mkdir(exist_ok=True)

    monkeypatch.setattr(QueueConsumer, "acknowledge", another_saves)
    with pytest.raises(CheckpointError, match=r"step 4 can't be saved: .*/checkpoints holds checkpoint 4, which this"):
        run(engine, params, tmp_path)
    assert TrajectoryQueue(tmp_path / "state.db").admin.progress().num_acknowledged == 4


@pytest.fixture
def impatient(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Waits for a second only."""
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"max_wait_s": 1.0}))
    return engine


def test_stale_groups_are_dropped_and_never_trained_on(impatient: Engine, params: Any, tmp_path: Path) -> None:
    fill(tmp_path, 12)
    with pytest.raises(StarvedError, match=r"for 2 of 2 groups of step 4 from rollout"):
        run(impatient, params, tmp_path, max_staleness=2)
    progress = TrajectoryQueue(tmp_path / "state.db").admin.progress()
    assert (progress.completed_steps, progress.num_dropped) == (3, 6)


def test_starving_is_bounded_and_says_what_it_waited_for(impatient: Engine, params: Any, tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(
        StarvedError, match=r"for 1 of 2 groups of step 1 from rollout and gave up \(learner\.max_wait_s"
    ):
        run(impatient, params, tmp_path)


def test_kl_budget_stops_the_run(engine: Engine, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LossSettings(kl=KLSettings(coefficient=0.01, budget=1e-6))
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"loss": loss}))
    fill(tmp_path, 12)
    outcome, log = run(engine, params, tmp_path)
    assert outcome.reason == "kl_budget"
    assert len(log.steps()) == 2
    assert log.steps()[0]["kl"] == pytest.approx(0.0, abs=1e-7)


def test_three_steps_that_are_not_finite_end_the_run(params: Any, tmp_path: Path) -> None:
    sound = objective.reinforcement(SETTINGS.loss)

    def poisoned(stats: Any, batch: Any, scalars: Any) -> Any:
        loss, metrics = sound(stats, batch, scalars)
        return loss * np.nan, metrics

    engine = Engine(SETTINGS, TINY, objective=objective.Objective(poisoned), temperature=1.0, devices=jax.devices()[:1])
    fill(tmp_path, 12)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        run(engine, params, tmp_path)
    got = final_parameters(tmp_path)
    for path, value in flatten_dict(params).items():
        np.testing.assert_array_equal(got[path], value)


def test_published_weights_are_those_of_the_checkpoint(whole: Finished, tmp_path: Path) -> None:
    """The fast path (weight store) and the durable path (Orbax, convert) give the same bytes for the same step."""
    from safetensors.numpy import load_file

    from learner_jax.conversion.convert import to_hf

    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(TINY_JSON | {"model_type": "qwen3"}))
    to_hf(whole.directory / "checkpoints", model_dir=source, out=tmp_path / "hf", dtype="float32")
    store = WeightStore(whole.directory / "weights", "test")
    published = load_file(store.folder(store.versions()[-1]) / "weights.safetensors")
    converted = load_file(tmp_path / "hf" / "model.safetensors")
    assert published.keys() == converted.keys()
    for name, value in published.items():
        np.testing.assert_array_equal(converted[name], value)

"""A policy objective and an advantage estimator from outside: called as Weir's are, and named where they are wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import rl_batch
from learner_jax.runtime import DoorError
from learner_jax.settings import (
    OBJECTIVE_DOOR,
    AdvantageSettings,
    GroupSettings,
    LossSettings,
    PolicySettings,
)
from learner_jax.training.engine import Engine
from learner_jax.training.policy_term import policy_objective
from tests.support.composed_losses import (
    GROUPS,
    LOSSES,
    gradients,
    initial_parameters,
    make_engine,
    relative_difference,
    whole_gradient,
)

CODE = '''
import jax
import jax.numpy as jnp
import numpy as np
from learner_jax.losses import importance_ratios, token_local

@token_local
def clip(log_ratios, advantages, clip_low, clip_high):
    rho = importance_ratios(log_ratios)
    return -jnp.minimum(rho * advantages, jnp.clip(rho, 1 - clip_low, 1 + clip_high) * advantages)

def whole_answer(logprobs, log_ratios, advantages, loss_mask, *, clip_low=0.2, clip_high=0.2):
    """GSPO of the one sequence of a row."""
    mean = jnp.sum(jnp.where(loss_mask, log_ratios, 0.0)) / jnp.maximum(jnp.sum(loss_mask), 1)
    rho = importance_ratios(jax.lax.stop_gradient(mean) + logprobs - jax.lax.stop_gradient(logprobs))
    loss = -jnp.minimum(rho * advantages, jnp.clip(rho, 1 - clip_low, 1 + clip_high) * advantages)
    return loss, {"answer_ratio": jnp.broadcast_to(jnp.exp(mean), loss.shape)}

def with_segments(log_ratios, segments): return log_ratios
def raises(log_ratios): raise KeyError("on purpose")
def one_number(log_ratios): return jnp.sum(log_ratios)
def no_array(log_ratios): return 1.0
def overflows(log_ratios): return jnp.exp(log_ratios)
def bad_gradient(log_ratios): return jnp.sqrt(jnp.abs(log_ratios))
def wants_more(log_ratios, entropy): return log_ratios
def wants_nothing(advantages): return advantages
def bad_value(log_ratios): return log_ratios, {"odd": 1.0}
no_function = 3

def centred(rewards):
    return rewards - rewards.mean()
def changes_its_input(rewards):
    rewards -= rewards.mean()
    return rewards
def of_two(rewards, more): return rewards
def first_only(rewards): return rewards[:1]
def nan(rewards): return rewards / 0.0 if False else np.full_like(rewards, np.nan)
def breaks(rewards): return rewards["a"]
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the folder that commands are given in."""
    name = re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def engine_with(objective: str, like: str, **changes: Any) -> Engine:
    loss = LOSSES[like]
    policy = loss.policy.model_copy(update={"objective": objective})
    return make_engine(loss.model_copy(update={"policy": policy}), **changes)


# Objectives


def test_a_token_local_objective_equals_the_same_one_of_weir(own: str) -> None:
    engine = engine_with(f"{own}:clip", "grpo")
    assert (engine.objective.token_local, engine.objective.packs) == (True, True)
    found, metrics = gradients(engine, initial_parameters(), GROUPS)
    expected, expected_metrics = whole_gradient("grpo")
    assert relative_difference(found, expected) < 1e-6
    assert metrics.keys() == expected_metrics.keys() - {"clip_fraction"}
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=1e-6)


def test_an_objective_that_names_no_segments_gets_one_sequence_a_row(own: str) -> None:
    engine = engine_with(f"{own}:whole_answer", "gspo, entropy", row_tokens=(34,), microbatch_rows=1)
    assert (engine.objective.token_local, engine.objective.packs) == (False, False)
    found, metrics = gradients(engine, initial_parameters(), GROUPS)
    expected, expected_metrics = whole_gradient("gspo, entropy")
    assert relative_difference(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=1e-5)
    assert 0.1 < metrics["answer_ratio"] < 10


def test_settings_reach_the_parameters_that_are_called_like_them(own: str) -> None:
    chosen = PolicySettings(objective=f"{own}:clip", clip_low=0.1, clip_high=0.4)
    assert dict(policy_objective(chosen).options) == {"clip_low": 0.1, "clip_high": 0.4}
    assert policy_objective(PolicySettings(objective=f"{own}:with_segments")).packs
    assert policy_objective(PolicySettings(objective="gspo")).arrays == (
        *("logprobs", "log_ratios", "advantages", "loss_mask", "segments"),
    )


@pytest.mark.parametrize("name", OBJECTIVE_DOOR.built_in)
def test_the_objectives_of_weir_go_through_the_same_door(name: str) -> None:
    assert policy_objective(PolicySettings(objective=name)).packs


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", r"failed: KeyError: 'on purpose'"),
        ("one_number", r"returned a loss of shape \(\), expected \(8,\): one number per token"),
        ("no_array", r"returned a loss of shape float, expected \(8,\)"),
        ("overflows", r"the loss is inf at a log ratio of 100 and an advantage of 1, expected a finite number"),
        ("bad_gradient", r"the gradient is (nan|inf|-inf) at a log ratio of 0"),
        ("wants_more", r"has a parameter 'entropy', expected only logprobs, log_ratios"),
        ("wants_nothing", r"names neither logprobs nor log_ratios nor proximal_log_ratios"),
        ("bad_value", r"returned a odd of shape float"),
        ("no_function", r"is of type int, expected a function"),
        ("clipp", r"has no 'clipp'; did you mean clip\?"),
    ],
)
def test_an_objective_that_cannot_be_used_is_named(own: str, function: str, message: str) -> None:
    with pytest.raises(DoorError, match=message) as caught:
        policy_objective(PolicySettings(objective=f"{own}:{function}"))
    assert f"learner.loss.policy.objective '{own}:{function}'" in str(caught.value)


# Estimators


def advantages(estimator: str, **groups: Any) -> list[np.ndarray]:
    loss = LossSettings(advantage=AdvantageSettings(estimator=estimator), groups=GroupSettings(**groups))
    batch, _ = rl_batch(GROUPS, loss, sequence_length=12, trained_version=4)
    own_rows = np.split(np.asarray(batch.advantages), np.cumsum([len(group) for group in GROUPS])[:-1])
    return [rows.max(axis=1) + rows.min(axis=1) for rows in own_rows]


@pytest.mark.parametrize("function", ["centred", "changes_its_input"])
def test_an_estimator_gets_the_rewards_of_a_group(own: str, function: str) -> None:
    for found, expected in zip(advantages(f"{own}:{function}"), advantages("dr_grpo"), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("of_two", r"takes \(rewards, more\), expected \(rewards\)"),
        ("first_only", r"returned advantages of shape \(1,\), expected \(2,\): one per answer"),
        ("nan", r"returned \[nan, nan\] for the rewards .*, expected finite numbers"),
        ("breaks", r"failed on the rewards .*: IndexError"),
    ],
)
def test_an_estimator_that_cannot_be_used_is_named(own: str, function: str, message: str) -> None:
    with pytest.raises(DoorError, match=message) as caught:
        advantages(f"{own}:{function}")
    assert f"learner.loss.advantage.estimator '{own}:{function}'" in str(caught.value)


# Settings


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        (PolicySettings, "objective", "'ppoo' is unknown; expected one of ppo, decoupled_ppo, cispo, gspo, policy_gra"),
        (AdvantageSettings, "estimator", "'ppoo' is unknown; expected one of grpo, dr_grpo, rloo, reinforce_pp"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(settings: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**{name: "ppoo"})
    assert getattr(settings(**{name: "nowhere:function"}), name) == "nowhere:function"


def test_checks_of_weirs_own_losses_stay() -> None:
    with pytest.raises(ValueError, match="dual_clip is for ppo and decoupled_ppo, not my:own"):
        LossSettings(policy=PolicySettings(objective="my:own", dual_clip=3.0))
    with pytest.raises(ValueError, match="whiten is for gae; my:own has"):
        LossSettings(advantage=AdvantageSettings(estimator="my:own", whiten=True))

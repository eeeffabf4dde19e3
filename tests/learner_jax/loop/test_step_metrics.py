"""Metrics of a step: what was not measured is no 0, in no mean and no figure."""

from __future__ import annotations

import math

import pytest

from learner_jax.loop.step_metrics import merged, with_explained_variance
from learner_jax.losses.kl import adapted_coefficient
from learner_jax.training.supervised import WarmStartError, _check_loss


def update(kl: float, *, empty: float = 0.0) -> dict[str, float]:
    return {"kl": kl, "empty": empty, "skipped": 0.0, "grad_norm": 2.0, "ratio_max": kl, "lagged_tokens": 3.0}


def test_one_update_keeps_its_metrics() -> None:
    assert merged([update(0.25)]) == update(0.25)


def test_an_update_without_tokens_is_in_no_mean() -> None:
    """Its KL is a sum over nothing; the mean of the batch's KL would be half of what was measured."""
    found = merged([update(0.5), update(0.0, empty=1.0)])
    assert (found["kl"], found["empty"], found["grad_norm"], found["lagged_tokens"]) == (0.5, 1.0, 2.0, 6.0)


def test_a_step_that_learned_from_nothing_has_no_kl_and_moves_no_coefficient() -> None:
    found = merged([update(0.0, empty=1.0)] * 2)
    assert math.isnan(found["kl"])
    assert adapted_coefficient(0.1, found["kl"], target=0.05, horizon=10) == 0.1
    assert not found["kl"] > 0.01  # no budget is spent


def test_values_explain_nothing_of_targets_that_are_all_the_same() -> None:
    same = {"value_target_square": 4.0, "value_target": 2.0, "value_loss": 0.0}
    assert math.isnan(with_explained_variance(same)["value_explained_variance"])
    different = {"value_target_square": 5.0, "value_target": 2.0, "value_loss": 0.25}
    assert with_explained_variance(different)["value_explained_variance"] == pytest.approx(0.5)
    assert with_explained_variance({"kl": 1.0}) == {"kl": 1.0}


def test_a_supervised_loss_that_is_not_finite_ends_the_start_with_its_reason() -> None:
    _check_loss(0.5, 20)
    with pytest.raises(WarmStartError, match=r"loss is nan at step 20: lower warm_start\.learning_rate"):
        _check_loss(math.nan, 20)

"""The first step of a peer, taken by Weir's learner: the batch as it is meant, and what counts as the same."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from tests.support.new_models import created
from tools.bench import BenchmarkError
from tools.bench.end_to_end.agreement import FirstStep, first_steps, require_agreement, rows
from tools.bench.end_to_end.workloads import WORKLOADS, resolved, run_overrides

__all__ = ["created"]

#: three answers, prompts padded at the left and answers at the right
BATCH = {
    "prompt_ids": np.array([[0, 5, 6], [7, 8, 9], [0, 0, 4]]),
    "prompt_mask": np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
    "completion_ids": np.array([[3, 1], [4, 0], [6, 7]]),
    "completion_mask": np.array([[1, 1], [1, 0], [1, 1]]),
    "advantages": np.array([1.0, -0.25, 0.5]),
}


def test_padding_is_taken_out_and_answers_are_told_from_prompts() -> None:
    tokens, sampled, lengths = rows(BATCH, 6)
    assert tokens.tolist() == [[5, 6, 3, 1, 0, 0], [7, 8, 9, 4, 0, 0], [4, 6, 7, 0, 0, 0]]
    assert sampled.astype(int).tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert lengths.tolist() == [4, 4, 3]


def test_a_first_step_has_the_loss_of_the_formula_and_a_norm_before_clipping(created: Path) -> None:
    """Ratios are 1 and the KL is 0 in a first step: the loss is minus the mean advantage, the gradient linear in it."""
    demo = WORKLOADS["demo"]
    small = ["learner.row_tokens=[16]", "learner.microbatch_rows=2", "learner.groups_per_step=1", "learner.cpu_cores=0"]
    config = resolved(demo, run_overrides(demo, created, small))
    (once,) = first_steps([BATCH], config)
    assert once.loss == pytest.approx(-BATCH["advantages"].mean(), abs=1e-6)
    (hundred,) = first_steps([BATCH | {"advantages": 100 * BATCH["advantages"]}], config)
    assert hundred.grad_norm == pytest.approx(100 * once.grad_norm, rel=1e-4)
    assert hundred.grad_norm > config.learner.optimizer.max_grad_norm


def test_later_steps_go_on_from_what_the_earlier_ones_have_made_of_the_weights(created: Path) -> None:
    """On answers of the policy itself the ratio is 1 again, and the KL to the start has grown."""
    demo = WORKLOADS["demo"]
    small = ["learner.row_tokens=[16]", "learner.microbatch_rows=2", "learner.groups_per_step=1", "learner.cpu_cores=0"]
    steep = ["learner.optimizer.learning_rate=0.01", "learner.loss.kl.coefficient=0.5"]
    config = resolved(demo, run_overrides(demo, created, [*small, *steep]))
    first, second = first_steps([BATCH, BATCH], config)
    assert first == first_steps([BATCH], config)[0]
    assert second.loss > first.loss + 1e-4
    free = resolved(demo, run_overrides(demo, created, [*small, steep[0], "learner.loss.kl.coefficient=0"]))
    assert first_steps([BATCH, BATCH], free)[1].loss == pytest.approx(-BATCH["advantages"].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "norm", "told"),
    [
        (2e-5, 2.0, "loss 2e-05, Weir 0"),
        (float("nan"), 2.0, "loss nan"),
        (0.0, 2.01, "gradient norm 2.01, Weir 2"),
        (0.0, float("nan"), "gradient norm nan"),
    ],
)
def test_another_first_step_is_an_error_that_says_what_differs(loss: float, norm: float, told: str) -> None:
    with pytest.raises(BenchmarkError, match="TRL's first step is not Weir's") as raised:
        require_agreement("TRL", FirstStep(loss, norm), FirstStep(0.0, 2.0))
    assert told in str(raised.value)


def test_rounding_is_no_disagreement_and_a_little_more_is_one() -> None:
    for loss, norm, agrees in ((9e-6, 2.003, True), (1.1e-5, 2.003, False), (9e-6, 2.005, False)):
        with nullcontext() if agrees else pytest.raises(BenchmarkError):
            require_agreement("TRL", FirstStep(loss, norm), FirstStep(0.0, 2.0))

"""Programs that are compiled before there is a batch are those that the steps then run."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.batches import Batch, rl_batch
from learner_jax.models import init_parameters
from learner_jax.settings.learner import LearnerSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from tests.support.compilations import STEP_PROGRAMS, compiled_names
from tests.support.tiny_model import TINY
from tests.support.trajectories import make_group

KL = {"kl": {"coefficient": 0.05}}
CRITIC = {"advantage": {"estimator": "gae", "whiten": True}, "value": {"model": "shared"}}
LAGGING = {"mismatch": {"lagging": True, "truncation": 2.0}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows of two lengths": (KL, {"row_tokens": (12, 24)}),
    "two updates without a reference": ({}, {"minibatches": 2}),
    "corrected for the mismatch, 16 bits published": (
        KL | LAGGING,
        {"mismatch_versions": 2, "publish_dtype": "bfloat16"},
    ),
    "critic": (KL | CRITIC, {}),
    "mesh": (KL, {"mesh": {"data": 2, "fsdp": 2}}),
}
#: each by itself, for the soak
SINGLY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no reference": ({}, {}),
    "reference": (KL, {}),
    "corrected for the mismatch": (KL | LAGGING, {"mismatch_versions": 2}),
    "two updates": (KL, {"minibatches": 2}),
    "16 bits published": (KL, {"publish_dtype": "bfloat16"}),
}


def make_engine(loss: dict[str, Any], **changes: Any) -> Engine:
    base = {"steps": 2, "groups_per_step": 4, "sequence_length": 12, "microbatch_rows": 8, "loss": loss}
    settings = LearnerSettings.model_validate(base | changes)
    devices = jax.devices()[: 4 if "mesh" in changes else 1]
    return Engine(settings, TINY, objective=objective.reinforcement(settings.loss), temperature=0.9, devices=devices)


def make_batch(engine: Engine, reference: Any) -> Batch:
    groups = [
        make_group(f"run/{i}", seed=i, size=6, prompt_tokens=4, answer_tokens=5, rewards=[0.0, 1.0, 0.5, 0.2, 0.0, 1.0])
        for i in range(4)
    ]
    statistics = engine.statistics
    batch, _ = rl_batch(
        groups,
        engine.settings.loss,
        sequence_length=12,
        trained_version=2,
        minibatches=engine.settings.minibatches,
        reference=(lambda rows: statistics.logprobs(reference, rows.tokens, rows.sampled, rows.lengths))
        if engine.settings.loss.kl.coefficient
        else None,
    )
    return batch


def a_step(engine: Engine, state: Any, reference: Any, published: Any) -> Any:
    """All that the loop computes in a step, on tokens that an older version sampled; the parameters after it."""
    batch = make_batch(engine, reference)
    planned = engine.statistics.prepared(state.params, engine.planned(batch), current_version=2)
    planned = engine.lagging.prepared(planned, {1: published}, current_version=2)
    assert engine.lagging.mismatch(planned.batch, {1: published}, current_version=2).num_tokens
    rows = len(batch.tokens) // engine.settings.minibatches
    for update in engine.updates(planned, [rows] * engine.settings.minibatches):
        state, _ = engine.step(state, engine.pack(update), current_version=2, changed_version=2)
    return state


def parts(engine: Engine) -> tuple[Any, Any, Any]:
    params = jax.tree.map(np.asarray, init_parameters(TINY, jax.random.key(0)))
    state = engine.init_state(params, seed=0)
    return state, engine.placed(params), engine.publication.weights(state.params)


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.soak) for case in SINGLY)])
def test_steps_find_their_programs_compiled_and_give_the_same_bits(case: str) -> None:
    loss, changes = (CASES | SINGLY)[case]
    engine = make_engine(loss, **changes)
    state, reference, published = parts(engine)
    with compiled_names() as ahead:
        engine.compile(state, reference=[reference] if "kl" in loss else (), older=[published])
    assert STEP_PROGRAMS - {"add"} <= set(ahead)  # engines share the program of the sum
    with compiled_names() as later:
        for _ in range(2):
            state = a_step(engine, state, reference, published)
    assert not STEP_PROGRAMS & set(later)

    other = make_engine(loss, **changes)
    fresh = parts(other)[0]
    for _ in range(2):
        fresh = a_step(other, fresh, reference, published)
    for path, value in flatten_dict(fresh.params).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(flatten_dict(state.params)[path]), err_msg=path)


def test_without_older_tokens_and_a_reference_no_log_probs_are_compiled() -> None:
    engine = make_engine({})
    with compiled_names() as ahead:
        engine.compile(parts(engine)[0])
    assert {"gradients", "update"} <= set(ahead)
    assert "token_stats" not in ahead


def test_what_can_not_be_compiled_is_an_error_at_once() -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("on purpose")

    settings = make_engine({}).settings
    engine = Engine(settings, TINY, objective=objective.Objective(broken), temperature=1.0, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="on purpose"):
        engine.compile(parts(engine)[0])

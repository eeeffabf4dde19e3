"""Work of a train step, counted by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest

from learner_jax.contracts import LLAMA, QWEN2, QWEN3
from learner_jax.models.flops import body_parameters, train_step_flops
from learner_jax.models.layout import Layout
from tests.support.decoders import tiny_config

SIZES: dict[str, int] = dict(vocab_size=50, hidden_size=12, intermediate_size=20, num_layers=3)
CONFIG = dataclasses.replace(tiny_config(), **SIZES, num_heads=4, num_kv_heads=2, head_dim=6)
#: queries and output, keys and values, and the three matrices of the feed-forward
MATRICES = 3 * (2 * 12 * 24 + 2 * 12 * 12 + 3 * 12 * 20)


@pytest.mark.parametrize("family", [LLAMA, QWEN2, QWEN3], ids=lambda family: family.name)
def test_matrices_of_layers_multiply_every_token_and_norms_biases_and_the_head_do_not(family: Any) -> None:
    for tied in (True, False):
        config = dataclasses.replace(CONFIG, family=family, tie_word_embeddings=tied)
        assert body_parameters(config) == MATRICES


def test_a_step_counts_each_token_what_it_sees_and_what_is_scored() -> None:
    """Two sequences of 3 and 2 tokens, and padding: 6 + 3 pairs."""
    positions, segments = jnp.array([[0, 1, 2, 0, 1, 0, 0]]), jnp.array([[0, 0, 0, 1, 1, -1, -1]])
    layout = Layout(segments=segments, prefixes=segments, positions=positions, predecessors=segments)
    expected = 6 * (5 * MATRICES + 4 * 50 * 12) + 12 * 3 * 4 * 6 * 9
    assert train_step_flops(CONFIG, layout, num_scored=4) == pytest.approx(expected)

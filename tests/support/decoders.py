"""Small decoders of every family with random weights, those of transformers, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from learner_jax import models as model
from learner_jax.contracts import QWEN3
from learner_jax.contracts import model as hf_names

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_gqa_untied_rope": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen3_tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    "qwen3_untied": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 16}),
}


#: Compiling takes most of the time of these tests; the numbers do not depend on how well LLVM does its work.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def tiny_config(**changes: Any) -> hf_names.ModelConfig:
    """A Qwen3 of two layers; the model of every test that needs no oracle from outside."""
    config = hf_names.ModelConfig(
        family=QWEN3,
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        rope_scaling=None,
        tie_word_embeddings=True,
        max_position_embeddings=128,
    )
    return replace(config, **changes)


def lively_parameters(config: hf_names.ModelConfig, seed: int = 0) -> model.Params:
    """Random parameters none of which is at its neutral value, so that leaving one out shows."""
    shapes = flatten_dict(model.abstract_parameters(config), sep=".")
    rng = np.random.default_rng(seed)
    flat = {
        path: jnp.asarray(rng.normal("norm" in path, 0.2, leaf.shape), jnp.float32) for path, leaf in shapes.items()
    }
    return unflatten_dict(flat, sep=".")


def random_tokens(config: hf_names.ModelConfig, shape: tuple[int, int], seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, shape), jnp.int32)


@pytest.fixture(scope="module")
def transformers() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    import transformers

    yield transformers
    torch.set_num_threads(threads)


def save_random_hf_model(transformers: Any, case: str, folder: Path, dtype: str = "float32") -> Any:
    """A transformers model of the case with random weights, norms and biases, saved to `folder`."""
    import torch

    family, options = CASES[case]
    settings = getattr(transformers, f"{family}Config")(**SHAPE, **options)
    settings._attn_implementation = "eager"
    hf_model = getattr(transformers, f"{family}ForCausalLM")(settings).to(getattr(torch, dtype)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    hf_model.save_pretrained(folder)
    return hf_model


def token_stats(
    config: hf_names.ModelConfig, params: model.Params, tokens: jax.Array, temperature: float = 1.0
) -> model.TokenStats:
    def stats(params: model.Params) -> model.TokenStats:
        return model.token_logprobs(model.merge(config, params), tokens, temperature=temperature)

    result: model.TokenStats = jax.jit(stats, compiler_options=QUICK_COMPILE)(params)
    return result


def loss_of(config: hf_names.ModelConfig, **options: Any) -> Callable[..., tuple[jax.Array, model.TokenStats]]:
    chunk_tokens = options.pop("chunk_tokens", 0)

    def loss(params: model.Params, tokens: jax.Array) -> tuple[jax.Array, model.TokenStats]:
        decoder = model.merge(config, params, **options)
        stats = model.token_logprobs(decoder, tokens, temperature=0.9, chunk_tokens=chunk_tokens)
        weights = 2 + jnp.cos(jnp.arange(tokens.size, dtype=jnp.float32)).reshape(tokens.shape)
        return jnp.sum(stats.logprobs * weights), stats

    return loss


def value_and_gradient(config: hf_names.ModelConfig, params: model.Params, tokens: jax.Array, **options: Any) -> Any:
    step = jax.jit(jax.value_and_grad(loss_of(config, **options), has_aux=True), compiler_options=QUICK_COMPILE)
    return step(params, tokens)


def assert_trees_close(got: Any, expected: Any, relative: float) -> None:
    """Largest difference of each leaf, relative to the leaf's largest value."""
    structure: Any = jax.tree.structure(got)
    assert structure == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, path
        assert np.abs(a - b).max() <= relative * np.abs(b).max(), path

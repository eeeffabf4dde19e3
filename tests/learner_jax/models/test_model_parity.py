"""The decoder against transformers, against real weights, and against itself in every way of computing it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from learner_jax import models as model
from learner_jax.contracts import LLAMA, QK_NORM_ROWS, with_rows
from learner_jax.contracts import model as hf_names
from learner_jax.models import hf_folder as hf_io
from learner_jax.models.attention import attention_implementation
from tests.support.decoders import (
    CASES,
    QUICK_COMPILE,
    assert_trees_close,
    lively_parameters,
    loss_of,
    random_tokens,
    save_random_hf_model,
    tiny_config,
    token_stats,
    value_and_gradient,
)
from tests.support.decoders import transformers as transformers


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(transformers: Any, case: str, tmp_path: Path) -> None:
    import torch

    hf_model = save_random_hf_model(transformers, case, tmp_path)
    config = hf_names.read_model_config(tmp_path)
    decoder = model.merge(config, hf_io.load_parameters(tmp_path, config))
    tokens = random_tokens(config, (2, 150))
    with torch.no_grad():
        expected = hf_model(torch.from_numpy(np.array(tokens, np.int64))).logits.numpy()
    got = np.asarray(decoder.logits(decoder.hidden_states(tokens)))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("case", "dtype"), [("qwen2_tied", "bfloat16"), ("qwen3_untied", "float32")])
def test_round_trip_gives_the_bytes_that_transformers_wrote(
    transformers: Any, case: str, dtype: str, tmp_path: Path
) -> None:
    save_random_hf_model(transformers, case, tmp_path, dtype)
    config = hf_names.read_model_config(tmp_path)
    exported = dict(hf_io.export_tensors(hf_io.load_parameters(tmp_path, config), config, dtype))
    written = load_file(tmp_path / "model.safetensors")
    assert exported.keys() == written.keys()
    for name, value in written.items():
        assert value.dtype == dtype
        assert (exported[name].shape, exported[name].tobytes()) == (value.shape, value.tobytes()), name


def test_real_weights_give_their_greedy_tokens(stories_model: Path) -> None:
    golden = json.loads((stories_model.parent / "greedy_golden.json").read_text())
    config = hf_names.read_model_config(stories_model)
    params = hf_io.load_parameters(stories_model, config)
    length = len(golden["tokens"])
    assert length == 121

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def next_token(tokens: jax.Array, position: jax.Array) -> jax.Array:
        decoder = model.merge(config, params)
        hidden = decoder.hidden_states(tokens)
        here = jax.lax.dynamic_slice_in_dim(hidden, position, 1, axis=1)
        return jnp.argmax(decoder.logits(here)[0, 0])

    tokens = np.zeros((1, length), np.int32)
    tokens[0, 0] = golden["tokens"][0]
    for position in range(length - 1):
        tokens[0, position + 1] = next_token(tokens, position)
    assert tokens[0].tolist() == golden["tokens"]
    stats = token_stats(config, params, jnp.asarray(tokens))
    np.testing.assert_allclose(stats.logprobs[0, 1:], golden["logprobs"], rtol=0, atol=1e-3)
    assert stats.argmax_correct[0, 1:].all()


def test_real_weights_give_the_logits_of_transformers(transformers: Any, stories_model: Path) -> None:
    import torch

    golden = json.loads((stories_model.parent / "greedy_golden.json").read_text())
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(
        stories_model, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        expected = hf_model(torch.tensor([golden["tokens"]])).logits.numpy()
    config = hf_names.read_model_config(stories_model)
    decoder = model.merge(config, hf_io.load_parameters(stories_model, config))
    got = decoder.logits(decoder.hidden_states(jnp.asarray([golden["tokens"]])))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_token_stats_equal_a_float64_softmax() -> None:
    config, temperature = tiny_config(), 0.7
    params = lively_parameters(config)
    decoder = model.merge(config, params)
    tokens = random_tokens(config, (3, 9))
    stats = token_stats(config, params, tokens, temperature)
    logits = np.asarray(decoder.logits(decoder.hidden_states(tokens)), np.float64) / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(np.log(p[:, :-1]), np.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(stats.logprobs[:, 1:], chosen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats.entropy[:, 1:], -(p * np.log(p)).sum(-1)[:, :-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stats.argmax_correct[:, 1:], p[:, :-1].argmax(-1) == np.asarray(tokens)[:, 1:])
    assert not stats.logprobs[:, 0].any()
    assert not stats.entropy[:, 0].any()
    assert not stats.argmax_correct[:, 0].any()


def test_padding_at_the_right_changes_nothing_before_it() -> None:
    config = tiny_config()
    row = random_tokens(config, (1, 12))
    pads = jnp.asarray([[0] * 5, [7] * 5, [3, 1, 4, 1, 5]], jnp.int32)
    stats = token_stats(config, lively_parameters(config), jnp.hstack([jnp.tile(row, (3, 1)), pads]))
    np.testing.assert_allclose(stats.logprobs[1:, :12], stats.logprobs[:1, :12].repeat(2, axis=0), rtol=1e-6)
    assert not np.allclose(stats.logprobs[1, 13:], stats.logprobs[2, 13:])


def test_positions_are_relative_and_used() -> None:
    config = tiny_config()
    decoder = model.merge(config, lively_parameters(config))
    tokens = random_tokens(config, (2, 12))
    shifted = decoder.hidden_states(tokens, jnp.tile(jnp.arange(7, 19), (2, 1)))
    stretched = decoder.hidden_states(tokens, jnp.tile(jnp.arange(0, 36, 3), (2, 1)))
    default = decoder.hidden_states(tokens)
    np.testing.assert_allclose(shifted, default, atol=1e-4)
    assert np.abs(stretched - default).max() > 0.1


def test_tokens_outside_the_vocabulary_are_loud() -> None:
    config = tiny_config()
    tokens = random_tokens(config, (2, 6)).at[1, 3].set(config.vocab_size)
    logprobs = token_stats(config, lively_parameters(config), tokens).logprobs
    assert np.isfinite(logprobs[0]).all()
    assert np.isnan(logprobs[1, 3:]).all()


@functools.cache
def reference(tied: bool) -> Any:
    """A model, its tokens, and value and gradient with everything computed at once in float32."""
    config = tiny_config(tie_word_embeddings=tied)
    params, tokens = lively_parameters(config), random_tokens(config, (4, 11))
    return config, params, tokens, value_and_gradient(config, params, tokens)


@pytest.mark.parametrize(("tied", "chunk_tokens"), [(True, 4), (False, 12)], ids=["one_step", "part_chunk_at_the_end"])
def test_chunked_head_gives_the_same_numbers_and_gradients(tied: bool, chunk_tokens: int) -> None:
    config, params, tokens, whole = reference(tied)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(whole[1]))
    assert_trees_close(value_and_gradient(config, params, tokens, chunk_tokens=chunk_tokens), whole, 1e-5)


def test_chunked_head_never_holds_all_logits() -> None:
    config = tiny_config(vocab_size=509)
    params, tokens = lively_parameters(config), random_tokens(config, (4, 33))

    def largest(chunk_tokens: int) -> int:
        gradient = jax.value_and_grad(loss_of(config, chunk_tokens=chunk_tokens), has_aux=True)
        closed = jax.make_jaxpr(gradient)(params, tokens)
        sizes = [v.aval.size for eqn in equations(closed.jaxpr) for v in eqn.outvars if 509 in v.aval.shape]
        return max(size for size in sizes if size != params["embed"]["weight"].size)

    assert largest(0) == 4 * 33 * 509
    assert largest(16) == 16 * 509


@pytest.mark.parametrize("remat", ["matmuls", "full"])
def test_remat_gives_the_same_gradients(remat: str) -> None:
    config, params, tokens, whole = reference(True)
    assert_trees_close(value_and_gradient(config, params, tokens, remat=remat), whole, 1e-5)
    gradient = jax.value_and_grad(loss_of(config, remat=remat), has_aux=True)
    assert any("remat" in str(eqn.primitive) for eqn in equations(jax.make_jaxpr(gradient)(params, tokens).jaxpr))


def test_gradient_equals_central_differences() -> None:
    config = tiny_config(num_layers=1)
    params, tokens = lively_parameters(config), random_tokens(config, (2, 6))
    (_, _), gradient = value_and_gradient(config, params, tokens)
    evaluate = jax.jit(loss_of(config), compiler_options=QUICK_COMPILE)
    for seed in range(3):
        direction = jax.tree.map(jnp.sign, lively_parameters(config, seed + 5))
        step = 1e-3
        high, low = (
            evaluate(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction), tokens)[0] for s in (step, -step)
        )
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose((high - low) / (2 * step), slope, rtol=1e-2)


def test_entropy_carries_no_gradient() -> None:
    config = tiny_config()
    params, tokens = lively_parameters(config), random_tokens(config, (1, 5))

    def entropy(params: model.Params) -> jax.Array:
        return model.token_logprobs(model.merge(config, params), tokens).entropy.sum()

    gradient = jax.jit(jax.grad(entropy), compiler_options=QUICK_COMPILE)(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_compute_is_close_to_float32_and_keeps_float32_gradients() -> None:
    config, params, tokens, ((_, wide), _) = reference(False)
    (_, narrow), gradient = value_and_gradient(config, params, tokens, compute_dtype="bfloat16", chunk_tokens=16)
    error = np.abs(np.asarray(wide.logprobs - narrow.logprobs))
    # bf16 keeps 8 bits: logits of size 3 are off by about 0.01 each, more after two layers.
    assert 0 < error.mean() < 0.03
    assert error.max() < 0.3
    assert narrow.logprobs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
    decoder = model.merge(config, params, compute_dtype="bfloat16")
    assert decoder.hidden_states(tokens).dtype == jnp.bfloat16


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_float32_compute_multiplies_in_float32_on_every_platform(remat: str) -> None:
    config = tiny_config()
    params, tokens = lively_parameters(config), random_tokens(config, (2, 8))

    def precisions(compute_dtype: str, **options: Any) -> tuple[int, set[Any]]:
        """Of matmuls of operands in the compute dtype; "xla" attention is fp32 whatever that is."""
        options |= {"remat": remat, "compute_dtype": compute_dtype}
        gradient = jax.value_and_grad(loss_of(config, **options), has_aux=True)
        dots = [
            eqn.params["precision"]
            for eqn in equations(jax.make_jaxpr(gradient)(params, tokens).jaxpr)
            if eqn.primitive.name == "dot_general" and eqn.invars[0].aval.dtype == compute_dtype
        ]
        return len(dots), set(dots)

    highest = (jax.lax.Precision.HIGHEST,) * 2
    count, found = precisions("float32", chunk_tokens=4)
    assert count >= 3 * 8
    assert found == {highest}
    count, found = precisions("bfloat16")
    assert count >= 3 * 7
    assert highest not in found


def test_parameter_tree_has_the_paths_and_shapes_of_the_table() -> None:
    every_row = replace(LLAMA, rows=with_rows(LLAMA.rows, *QK_NORM_ROWS))
    options = (("attention_bias", True), ("mlp_bias", True))
    config = tiny_config(family=every_row, options=options, tie_word_embeddings=False)
    assert len(hf_names.parameters(config)) == 21
    params = model.init_parameters(config, jax.random.key(0))
    state = nnx.to_flat_state(nnx.state(model.merge(config, params), nnx.Param))
    assert {".".join(map(str, path)) for path, _ in state} == {row.path for row in hf_names.parameters(config)}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.abstract_parameters(config)
    )
    flat = flatten_dict(params, sep=".")
    assert float(flat["layers.mlp.up_proj.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert float(flat["layers.attention.q_norm.weight"].min()) == 1
    assert not flat["layers.mlp.down_proj.bias"].any()
    assert not np.array_equal(flat["layers.mlp.up_proj.weight"], flat["layers.mlp.gate_proj.weight"])


def test_merge_refuses_a_tree_of_another_model() -> None:
    config = tiny_config()
    params = lively_parameters(config)
    with pytest.raises(ValueError, match=r"missing \['lm_head.weight'\], unknown \[\]"):
        model.merge(replace(config, tie_word_embeddings=False), params)
    with pytest.raises(
        ValueError, match=r"layers.mlp.gate_proj.weight has shape \(2, 48, 32\), expected \(2, 49, 32\)"
    ):
        model.merge(replace(config, intermediate_size=49), params)


def test_attention_table_lists_what_it_knows() -> None:
    assert attention_implementation("gpu", "bfloat16") == "cudnn"
    assert attention_implementation("gpu", "float32") == "xla"
    with pytest.raises(ValueError, match="'METAL'.*known platforms: cpu, gpu, tpu.*float32, bfloat16"):
        attention_implementation("METAL", "float32")

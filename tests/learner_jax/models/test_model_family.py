"""A model family from outside the repository: its rows are loaded, computed, differentiated and converted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from learner_jax.contracts import (
    LLAMA,
    QWEN2,
    ModelConfig,
    ModelConfigError,
    ModelFamilyError,
    Row,
    hf_shapes,
    layer_row,
    parameters,
    read_model_config,
    with_rows,
)
from learner_jax.conversion import from_hf, to_hf, verify
from learner_jax.models import Params, load_parameters, merge, token_logprobs
from learner_jax.runtime import DoorError
from tools.testing.fake_vllm.qwen3 import Qwen3, log_softmax

MODULE = """
from dataclasses import replace
import jax
from learner_jax.contracts import LLAMA, QK_NORM_ROWS, QWEN2, Key, layer_row, with_rows

#: A Llama with norms of queries and keys.
TINY = replace(
    LLAMA, name="tiny", architecture="TinyForCausalLM", model_type="tiny", rows=with_rows(LLAMA.rows, *QK_NORM_ROWS)
)

#: A Qwen2.5 whose output projection may have a bias, too.
BIASED = replace(
    QWEN2,
    name="biased",
    architecture="BiasedForCausalLM",
    model_type="biased",
    keys=(*QWEN2.keys, Key("out_bias", "true or false", lambda value: isinstance(value, bool), False, read=True)),
    rows=with_rows(
        QWEN2.rows, layer_row("attention.o_proj.bias", "self_attn.o_proj.bias", "hidden_norm", when="out_bias")
    ),
)

#: A Llama that is computed by a decoder of its own.
GELU = replace(
    LLAMA,
    name="gelu",
    architecture="GeluForCausalLM",
    model_type="gelu",
    keys=(*LLAMA.keys, Key("hidden_act", '"gelu"', lambda value: value == "gelu", "gelu")),
    decoder="FORWARD:GeluDecoder",
)
"""
FORWARD = """
import jax
from learner_jax.models import MLP, Decoder, Layer

class GeluMLP(MLP):
    def __call__(self, x):
        return self.down_proj(jax.nn.gelu(self.gate_proj(x), approximate=False) * self.up_proj(x))

class GeluLayer(Layer):
    mlp_type = GeluMLP

class GeluDecoder(Decoder):
    layer_type = GeluLayer

class NotADecoder:
    pass
"""
CONFIG = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
TOKENS = np.random.default_rng(3).integers(0, 29, (2, 12)).astype(np.int32)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module of a user's in the folder that commands are given in."""
    name = re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(MODULE.replace("FORWARD", f"{name}_forward"))
    (tmp_path / f"{name}_forward.py").write_text(FORWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def model_folder(folder: Path, family: str, architecture: str, **changes: Any) -> ModelConfig:
    """A folder with random tensors of every row of the family."""
    folder.mkdir()
    kind = architecture.removesuffix("ForCausalLM").lower()
    raw = CONFIG | {"architectures": [architecture], "model_type": kind} | changes
    (folder / "config.json").write_text(json.dumps(raw))
    config = read_model_config(folder, family=family)
    rng = np.random.default_rng(1)
    tensors = {
        name: rng.normal("norm" in name, 0.4, shape).astype(np.float32) for name, shape in hf_shapes(config).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return config


def logprobs(config: ModelConfig, folder: Path) -> np.ndarray:
    params = load_parameters(folder, config)
    with jax.disable_jit():
        return np.asarray(token_logprobs(merge(config, params), jnp.asarray(TOKENS)).logprobs)[:, 1:]


def chosen(logits: np.ndarray) -> np.ndarray:
    picked = np.take_along_axis(log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], axis=-1)
    return np.asarray(picked[..., 0])


def theirs(kind: str, folder: Path, **changes: Any) -> np.ndarray:
    """Log-probs by transformers' model of this kind on the folder's tensors."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = getattr(transformers, f"{kind}Config")(**CONFIG, **changes)
    settings._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    found = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    for layer in model.model.layers:  # a bias that transformers' class does not make
        name = f"model.layers.{layer.self_attn.layer_idx}.self_attn.o_proj.bias"
        if name in found and layer.self_attn.o_proj.bias is None:
            layer.self_attn.o_proj.bias = torch.nn.Parameter(torch.empty_like(found[name]))
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert (missing, unexpected) == ([], [])
    with torch.no_grad():
        return chosen(model(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy())


def test_a_llama_with_query_and_key_norms_equals_an_independent_model(module: str, tmp_path: Path) -> None:
    config = model_folder(tmp_path / "model", f"{module}:TINY", "TinyForCausalLM")
    assert config.family.architecture == "TinyForCausalLM"
    expected = chosen(Qwen3(config, load_file(tmp_path / "model" / "model.safetensors")).logits(TOKENS))
    np.testing.assert_allclose(logprobs(config, tmp_path / "model"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("out_bias", [True, False])
def test_a_qwen2_with_a_bias_behind_a_key_of_its_own_equals_transformers(
    module: str, tmp_path: Path, out_bias: bool
) -> None:
    folder = tmp_path / "model"
    config = model_folder(folder, f"{module}:BIASED", "BiasedForCausalLM", out_bias=out_bias)
    assert config.option("out_bias") is out_bias
    assert ("model.layers.0.self_attn.o_proj.bias" in hf_shapes(config)) == out_bias
    np.testing.assert_allclose(logprobs(config, folder), theirs("Qwen2", folder), rtol=0, atol=1e-4)


def test_a_decoder_of_the_family_computes_it(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = model_folder(folder, f"{module}:GELU", "GeluForCausalLM", hidden_act="gelu")
    expected = theirs("Llama", folder, hidden_act="gelu")
    np.testing.assert_allclose(logprobs(config, folder), expected, rtol=0, atol=1e-4)
    plain = logprobs(replace(config, family=LLAMA), folder)
    assert np.abs(plain - expected).max() > 1e-2


def test_gradients_reach_every_row(module: str, tmp_path: Path) -> None:
    config = model_folder(tmp_path / "model", f"{module}:BIASED", "BiasedForCausalLM", out_bias=True)
    params = load_parameters(tmp_path / "model", config)

    @jax.jit
    def gradient_of(params: Params) -> Params:
        return jax.grad(lambda params: token_logprobs(merge(config, params), jnp.asarray(TOKENS)).logprobs.sum())(
            params
        )

    gradient = gradient_of(params)
    sizes = {path: float(jnp.abs(leaf).max()) for path, leaf in flatten_dict(gradient, sep=".").items()}
    assert set(sizes) == {row.path for row in parameters(config)}
    # Softmax does not see a shift of all keys by the same vector, so that their bias moves nothing but by rounding.
    assert {path for path, size in sizes.items() if size < 1e-4} <= {"layers.attention.k_proj.bias"}


def test_conversion_there_and_back_keeps_the_folder(module: str, tmp_path: Path) -> None:
    family = f"{module}:TINY"
    model_folder(tmp_path / "model", family, "TinyForCausalLM")
    from_hf(tmp_path / "model", out=tmp_path / "checkpoint", family=family)
    to_hf(tmp_path / "checkpoint", out=tmp_path / "again", family=family)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["TinyForCausalLM"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    found = verify(tmp_path / "checkpoint", tmp_path / "again", family=family)
    assert found.problems == ()
    assert found.judge == "the learner's model"
    with pytest.raises(ModelConfigError, match="TinyForCausalLM.* is not supported; expected one of Llama"):
        to_hf(tmp_path / "checkpoint", out=tmp_path / "unknown")


def test_a_family_that_cannot_be_is_refused(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = model_folder(folder, f"{module}:TINY", "TinyForCausalLM")
    with pytest.raises(ModelConfigError, match="TinyForCausalLM.* is not supported; expected one of Llama.*model.fam"):
        read_model_config(folder)
    with pytest.raises(ModelConfigError, match="expected one of BiasedForCausalLM"):
        read_model_config(folder, family=f"{module}:BIASED")
    with pytest.raises(ModelFamilyError, match=r"is of type module, expected a learner_jax.contracts.ModelFamily"):
        read_model_config(folder, family=f"{module}:jax")
    with pytest.raises(DoorError):
        read_model_config(folder, family=f"{module}:NOTHING")
    other = replace(config, family=replace(config.family, decoder=f"{module}_forward:NotADecoder"))
    with pytest.raises(ModelFamilyError, match="expected a subclass of learner_jax.models.Decoder"):
        merge(other, load_parameters(folder, config))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (layer_row("mlp.x.weight", "x", "wide"), "dimension 'wide', expected one of vocab, embed"),
        (layer_row("mlp.x.weight", "x", "mlp", when="hidden_act"), "depends on 'hidden_act', expected a key with read"),
        (layer_row("mlp.x.weight", "x", "mlp", when="nothing"), "depends on 'nothing'"),
        (Row("layers.x.weight", "x", ("mlp",)), "expected {layer} exactly where path is below layers."),
        (Row("x.weight", "model.{layer}.x", ("mlp",)), "expected {layer} exactly where"),
        (Row("norm.weight", "model.other.weight", ("mlp",)), "path 'norm.weight' stands in two rows"),
        (Row("other.weight", "model.norm.weight", ("mlp",)), "hf_name 'model.norm.weight' stands in two rows"),
    ],
)
def test_a_row_that_cannot_be_is_refused(row: Row, message: str) -> None:
    with pytest.raises(ModelFamilyError, match=re.escape(message)):
        replace(QWEN2, rows=(*QWEN2.rows, row))


def test_added_rows_stand_behind_their_module() -> None:
    rows = (Row("a.x.weight", "1", ()), Row("a.y.weight", "2", ()), Row("b.weight", "3", ()))
    added = (Row("a.x.bias", "4", ()), Row("a.z.weight", "5", ()), Row("c.weight", "6", ()))
    paths = [row.path for row in with_rows(rows, *added)]
    assert paths == ["a.x.weight", "a.x.bias", "a.y.weight", "a.z.weight", "b.weight", "c.weight"]

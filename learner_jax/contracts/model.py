"""One row per model parameter: our path, its Hugging Face name, its shape and its logical axes; free of JAX.

Weights keep Hugging Face's [out, in] layout everywhere, so that publishing, conversion and comparison are
plain copies. Parameters of the repeated decoder layers are stacked on a leading `layers` axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.contracts.hf_config import (
    Family,
    ModelConfigError,
    check_head_sizes,
    check_keys,
    check_model_type,
    json_object,
    read_json_object,
    read_rope,
)

SUPPORTED_ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFER_SUFFIX = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (The Llama 3 Herd of Models, arXiv 2407.21783, section 3.2)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a dense decoder, as read from a Hugging Face config.json."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    attention_bias: bool
    attention_out_bias: bool
    mlp_bias: bool
    max_position_embeddings: int

    @property
    def qk_norm(self) -> bool:
        return self.family == "qwen3"


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Attributes:
      path: dotted path in our parameter tree.
      hf_name: Hugging Face name, with `{layer}` for stacked parameters.
      shape: shape of one layer's tensor (without the stacked axis).
      axes: logical axis of each dimension of `shape`.
      stacked: whether the parameter repeats per layer.
    """

    path: str
    hf_name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stacked: bool


def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model, in a fixed order."""
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv, h = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.head_dim
    rows = [Parameter("embed.weight", EMBED, (v, d), ("vocab", "embed"), stacked=False)]

    def layer(path: str, hf: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
        rows.append(Parameter(f"layers.{path}", f"model.layers.{{layer}}.{hf}", shape, axes, stacked=True))

    layer("input_norm.weight", "input_layernorm.weight", (d,), ("norm",))
    for name, size, axis in (("q", q, "heads"), ("k", kv, "kv_heads"), ("v", kv, "kv_heads")):
        layer(f"attention.{name}_proj.weight", f"self_attn.{name}_proj.weight", (size, d), (axis, "embed"))
        if config.attention_bias:
            layer(f"attention.{name}_proj.bias", f"self_attn.{name}_proj.bias", (size,), (axis,))
    layer("attention.o_proj.weight", "self_attn.o_proj.weight", (d, q), ("embed", "heads"))
    if config.attention_out_bias:
        layer("attention.o_proj.bias", "self_attn.o_proj.bias", (d,), ("norm",))
    if config.qk_norm:
        layer("attention.q_norm.weight", "self_attn.q_norm.weight", (h,), ("norm",))
        layer("attention.k_norm.weight", "self_attn.k_norm.weight", (h,), ("norm",))
    layer("post_norm.weight", "post_attention_layernorm.weight", (d,), ("norm",))
    for name, shape, axes in (
        ("gate", (f, d), ("mlp", "embed")),
        ("up", (f, d), ("mlp", "embed")),
        ("down", (d, f), ("embed", "mlp")),
    ):
        layer(f"mlp.{name}_proj.weight", f"mlp.{name}_proj.weight", shape, axes)
        if config.mlp_bias:
            bias_axis = ("norm",) if name == "down" else ("mlp",)
            layer(f"mlp.{name}_proj.bias", f"mlp.{name}_proj.bias", shape[:1], bias_axis)
    rows.append(Parameter("norm.weight", "model.norm.weight", (d,), ("norm",), stacked=False))
    if not config.tie_word_embeddings:
        rows.append(Parameter("lm_head.weight", HEAD, (v, d), ("vocab", "embed"), stacked=False))
    return tuple(rows)


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face tensor name -> shape, for every tensor of the model."""
    return {name: row.shape for row in parameters(config) for name in hf_tensor_names(row, config)}


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is no parameter: rope frequencies, which old transformers saved; config.json has them."""
    return name.endswith(_BUFFER_SUFFIX)


def hf_tensor_names(row: Parameter, config: ModelConfig) -> Iterator[str]:
    """Hugging Face names that one row of the table stands for (one per layer if stacked)."""
    if not row.stacked:
        yield row.hf_name
        return
    for index in range(config.num_layers):
        yield row.hf_name.format(layer=index)


def read_model_config(model_dir: str | Path) -> ModelConfig:
    """Reads `config.json` of a Hugging Face model folder.

    Raises:
      ModelConfigError: the folder or file is missing or damaged, or names a model outside Llama 3, Qwen2.5, Qwen3.
    """
    path = Path(model_dir) / "config.json"
    if not Path(model_dir).is_dir():
        raise ModelConfigError(
            f"model folder {model_dir} does not exist; set model.path to a Hugging Face model folder"
        )
    try:
        raw = read_json_object(path)
    except FileNotFoundError:
        raise ModelConfigError(f"{model_dir} holds no config.json; expected a Hugging Face model folder") from None
    return _folder_config(raw, str(path))


def parse_config_file(data: bytes, *, origin: str) -> ModelConfig:
    """The model that the bytes of a config.json describe; `origin` names the file in errors."""
    return _folder_config(json_object(data, origin), origin)


def _folder_config(raw: Mapping[str, Any], origin: str) -> ModelConfig:
    config = parse_model_config(raw, origin=origin)
    if "model_type" not in raw:
        raise ModelConfigError(f"{origin}: required field 'model_type' is missing; expected {config.family!r}")
    return config


def parse_model_config(raw: Mapping[str, Any], *, origin: str) -> ModelConfig:
    """Turns the fields of a config.json into a `ModelConfig`; `origin` names the file in errors.

    Raises:
      ModelConfigError: a key asks for what this decoder does not compute, or is not what transformers takes.
    """
    family = check_model_type(raw, SUPPORTED_ARCHITECTURES, origin)
    values = check_keys(raw, family, origin)
    num_kv_heads, head_dim = check_head_sizes(family, values, origin)
    rope = read_rope(raw, values["max_position_embeddings"], origin)
    return ModelConfig(
        family=family,
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=values["rms_norm_eps"],
        rope_theta=float(rope.theta),
        rope_scaling=None if rope.scaling is None else RopeScaling(**rope.scaling),  # type: ignore[arg-type]
        tie_word_embeddings=values["tie_word_embeddings"],
        attention_bias=family == "qwen2" or values.get("attention_bias", False),
        attention_out_bias=values.get("attention_bias", False),
        mlp_bias=values.get("mlp_bias", False),
        max_position_embeddings=values["max_position_embeddings"],
    )

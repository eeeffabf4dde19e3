"""One row per model parameter: our path, its Hugging Face name, its shape and its logical axes; free of JAX.

Weights keep Hugging Face's [out, in] layout everywhere, so that publishing, conversion and comparison are
plain copies. Parameters of the repeated decoder layers are stacked on a leading `layers` axis.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SUPPORTED_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


class ModelConfigError(ValueError):
    """A model's config.json asks for something that this decoder does not compute."""


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

    family: Literal["llama", "qwen2", "qwen3"]
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
    rows = [Parameter("embed.weight", "model.embed_tokens.weight", (v, d), ("vocab", "embed"), stacked=False)]

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
        rows.append(Parameter("lm_head.weight", "lm_head.weight", (v, d), ("vocab", "embed"), stacked=False))
    return tuple(rows)


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face tensor name -> shape, for every tensor of the model."""
    return {name: row.shape for row in parameters(config) for name in hf_tensor_names(row, config)}


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
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelConfigError(f"{model_dir} holds no config.json; expected a Hugging Face model folder") from None
    except ValueError as error:
        raise ModelConfigError(f"{path} is not valid JSON: {error}") from error
    return parse_model_config(raw, origin=str(path))


def parse_model_config(raw: Mapping[str, Any], *, origin: str) -> ModelConfig:
    """Turns the fields of a config.json into a `ModelConfig`; `origin` names the file in errors."""
    architectures = raw.get("architectures") or ["(none)"]
    family = SUPPORTED_ARCHITECTURES.get(architectures[0])
    if family is None:
        known = ", ".join(SUPPORTED_ARCHITECTURES)
        raise ModelConfigError(f"{origin}: architecture {architectures[0]!r} is not supported; expected one of {known}")
    try:
        config = _model_config(raw, family)
    except KeyError as error:
        raise ModelConfigError(f"{origin}: required field {error.args[0]!r} is missing") from None
    _refuse_unsupported(raw, config, origin)
    return config


def _model_config(raw: Mapping[str, Any], family: str) -> ModelConfig:
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_position_embeddings=rope["original_max_position_embeddings"],
        )
    elif kind != "default":
        raise ModelConfigError(f"rope type {kind!r} is not supported; expected default or llama3")
    num_heads = raw["num_attention_heads"]
    llama_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        family=family,  # type: ignore[arg-type]
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
        rope_scaling=scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=True if family == "qwen2" else llama_bias,
        attention_out_bias=False if family == "qwen2" else llama_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        max_position_embeddings=raw.get("max_position_embeddings", 2048),
    )


def _refuse_unsupported(raw: Mapping[str, Any], config: ModelConfig, origin: str) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelConfigError(f"{origin}: hidden_act {raw['hidden_act']!r} is not supported; expected silu")
    if raw.get("use_sliding_window"):
        raise ModelConfigError(f"{origin}: sliding-window attention is not supported; set use_sliding_window to false")
    if config.num_heads % config.num_kv_heads:
        raise ModelConfigError(
            f"{origin}: {config.num_heads} heads do not divide into {config.num_kv_heads} key/value heads"
        )
    if raw.get("quantization_config"):
        raise ModelConfigError(f"{origin}: quantised weights can't be trained; expected a bf16 or fp32 model")

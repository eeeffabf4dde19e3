"""One row per model parameter: our path, its Hugging Face name, its shape and its logical axes; free of JAX.

Weights keep Hugging Face's [out, in] layout everywhere, so that publishing, conversion and comparison are
plain copies. Parameters of the repeated decoder layers are stacked on a leading `layers` axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.contracts.families import BUILT_IN, DIM_AXES, ModelFamily, ModelFamilyError, Row
from learner_jax.contracts.hf_config import (
    ModelConfigError,
    check_head_sizes,
    check_keys,
    check_model_type,
    json_object,
    read_json_object,
    read_rope,
)
from learner_jax.runtime import Door

FAMILY_DOOR = Door(
    kind="model_family",
    setting="model.family",
    built_in={family.name: f"learner_jax.contracts:{family.name.upper()}" for family in BUILT_IN},
)
_BUFFER_SUFFIX = ".rotary_emb.inv_freq"
#: Keys of config.json that have a field of their own in `ModelConfig`.
_OWN_FIELDS = frozenset(
    (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "max_position_embeddings",
    )
)


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (The Llama 3 Herd of Models, arXiv 2407.21783, section 3.2)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape and options of a decoder, as read from a Hugging Face config.json.

    Attributes:
      options: (key, value) of what else the family reads, such as ("attention_bias", True).
    """

    family: ModelFamily
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
    max_position_embeddings: int
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, key: str) -> Any:
        """What config.json, or else the key's default, says."""
        return dict(self.options)[key]

    def has(self, row: Row) -> bool:
        """Whether the model has this parameter of its family."""
        said = {"tie_word_embeddings": self.tie_word_embeddings, **dict(self.options)}
        return not (row.when and not said.get(row.when)) and not (row.unless and said.get(row.unless))


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
    size = _sizes(config)
    return tuple(
        Parameter(
            row.path,
            row.hf_name,
            tuple(size[dim] for dim in row.dims),
            tuple(DIM_AXES[dim] for dim in row.dims),
            row.stacked,
        )
        for row in config.family.rows
        if config.has(row)
    )


def _sizes(config: ModelConfig) -> dict[str, int]:
    """Size of each dimension that a row may name."""
    return {
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "heads": config.num_heads * config.head_dim,
        "kv_heads": config.num_kv_heads * config.head_dim,
        "mlp": config.intermediate_size,
        "hidden_norm": config.hidden_size,
        "head_norm": config.head_dim,
    }


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


def model_families(name: str) -> tuple[ModelFamily, ...]:
    """The families that a model may be of: those of Weir, or the one alone that model.family names.

    Raises:
      DoorError, ModelFamilyError: there is no such object, or it is no family.
    """
    if not name:
        return BUILT_IN
    family = FAMILY_DOOR.load(name)
    if not isinstance(family, ModelFamily):
        raise ModelFamilyError(
            f"model.family {name!r} is of type {type(family).__name__}, expected a learner_jax.contracts.ModelFamily"
        )
    return (family,)


def read_model_config(model_dir: str | Path, *, family: str = "") -> ModelConfig:
    """Reads `config.json` of a Hugging Face model folder.

    Args:
      family: model.family of the run; empty: one of Weir's.

    Raises:
      ModelConfigError: the folder or file is missing or damaged, or names a model of another family.
      DoorError, ModelFamilyError: `family` names none.
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
    return _folder_config(raw, str(path), family)


def parse_config_file(data: bytes, *, origin: str, family: str = "") -> ModelConfig:
    """The model that the bytes of a config.json describe; `origin` names the file in errors."""
    return _folder_config(json_object(data, origin), origin, family)


def _folder_config(raw: Mapping[str, Any], origin: str, family: str) -> ModelConfig:
    config = parse_model_config(raw, origin=origin, family=family)
    if "model_type" not in raw:
        raise ModelConfigError(
            f"{origin}: required field 'model_type' is missing; expected {config.family.model_type!r}"
        )
    return config


def parse_model_config(raw: Mapping[str, Any], *, origin: str, family: str = "") -> ModelConfig:
    """Turns the fields of a config.json into a `ModelConfig`; `origin` names the file in errors.

    Raises:
      ModelConfigError: a key asks for what this decoder does not compute, or is not what transformers takes.
      DoorError, ModelFamilyError: `family` names none.
    """
    found = check_model_type(raw, model_families(family), origin)
    values = check_keys(raw, found, origin)
    num_kv_heads, head_dim = check_head_sizes(found, values, origin)
    rope = read_rope(raw, values["max_position_embeddings"], origin)
    return ModelConfig(
        family=found,
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
        max_position_embeddings=values["max_position_embeddings"],
        options=tuple((name, _frozen(value)) for name, value in values.items() if name not in _OWN_FIELDS),
    )


def _frozen(value: Any) -> Any:
    """A value of JSON in a form that has a hash, since programs are compiled per `ModelConfig`."""
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list) else value

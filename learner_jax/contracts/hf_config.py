"""What a model's config.json says, read as transformers reads it or refused by the name of its key; free of JAX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.contracts.families import ModelFamily
from learner_jax.contracts.hf_keys import MISSING, is_even, is_number, one_of
from learner_jax.runtime import WeirError


class ModelConfigError(WeirError, ValueError):
    """A model's config.json asks for something that this decoder does not compute, or is damaged."""

    can_heal = False


_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_ROPE_KEYS = (*_ROPE_NUMBERS, "rope_type", "type", "partial_rotary_factor")
DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of a config: `scaling` holds llama3's numbers by their key, None where nothing is scaled."""

    theta: float
    scaling: Mapping[str, float] | None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
      FileNotFoundError: there is no such file.
      ModelConfigError: the file holds no JSON, or another value than an object.
    """
    try:
        return json_object(path.read_bytes(), str(path))
    except (IsADirectoryError, PermissionError) as error:
        raise ModelConfigError(f"{path} can't be read: {error.strerror}") from error


def json_object(data: bytes, origin: str) -> dict[str, Any]:
    """The object that `data` encodes as JSON in UTF-8; raises `ModelConfigError` naming `origin`."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelConfigError(f"{origin} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelConfigError(f"{origin} holds a {type(value).__name__}, expected an object")
    return value


def check_keys(raw: Mapping[str, Any], family: ModelFamily, origin: str) -> dict[str, Any]:
    """The values that the decoder computes with, defaults filled in; a null stays None.

    Raises:
      ModelConfigError: a key is missing, of a wrong type, or asks for something that is not computed.
    """
    values = {}
    for key in family.key_table.values():
        if key.name in raw and not key.fits(raw[key.name]):
            raise ModelConfigError(f"{origin}: {key.name} is {_shown(raw[key.name])}, expected {key.expected}")
        if key.read:
            values[key.name] = raw.get(key.name, key.default)
    for name, value in values.items():
        if value is MISSING:
            raise ModelConfigError(f"{origin}: required field {name!r} is missing")
    _check_layer_types(raw, values["num_hidden_layers"], origin)
    _check_padding(raw, values["vocab_size"], origin)
    return values


def _check_layer_types(raw: Mapping[str, Any], num_layers: int, origin: str) -> None:
    types = raw.get("layer_types")
    if types is not None and types != ["full_attention"] * num_layers:
        raise ModelConfigError(
            f"{origin}: layer_types is {_shown(types)}, expected null or {num_layers} times full_attention; "
            f"sliding-window attention is not supported"
        )


def _check_padding(raw: Mapping[str, Any], vocab_size: int, origin: str) -> None:
    pad = raw.get("pad_token_id")
    if pad is not None and not -vocab_size <= pad < vocab_size:
        raise ModelConfigError(f"{origin}: pad_token_id is {pad}, expected an id below vocab_size {vocab_size}")


def check_head_sizes(family: ModelFamily, values: Mapping[str, Any], origin: str) -> tuple[int, int]:
    """(number of key/value heads, head size) of `check_keys`' values; `ModelConfigError` where they don't fit."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    kv_heads = heads if values["num_key_value_heads"] is None else values["num_key_value_heads"]
    if heads % kv_heads:
        raise ModelConfigError(
            f"{origin}: num_key_value_heads is {kv_heads}, expected a divisor of num_attention_heads {heads}"
        )
    if family.head_sizes == "divides" and hidden % heads:
        raise ModelConfigError(f"{origin}: hidden_size is {hidden}, expected a multiple of num_attention_heads {heads}")
    shared = hidden // heads
    head_dim = shared if values["head_dim"] is None else values["head_dim"]
    if not is_even(head_dim):
        raise ModelConfigError(
            f"{origin}: hidden_size {hidden} over num_attention_heads {heads} makes heads of {head_dim}, expected an "
            f"even size"
        )
    if family.head_sizes == "shared" and head_dim != shared:
        raise ModelConfigError(
            f"{origin}: head_dim is {head_dim}, expected {shared}, hidden_size over num_attention_heads: vLLM's model "
            f"takes no other"
        )
    return kv_heads, head_dim


def read_rope(raw: Mapping[str, Any], max_position_embeddings: int, origin: str) -> Rope:
    """Rotary embedding as transformers resolves it: `rope_scaling` before `rope_parameters`, each before `rope_theta`.

    Raises:
      ModelConfigError: another type than default and llama3, nested by layer, or a number missing or of a wrong type.
    """
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    for key in ("rope_scaling", "rope_parameters"):
        if raw.get(key) is not None and not isinstance(raw[key], dict):
            raise ModelConfigError(f"{origin}: {key} is {_shown(raw[key])}, expected an object or null")
    if unknown := sorted(str(key) for key in rope.keys() - set(_ROPE_KEYS)):
        raise ModelConfigError(
            f"{origin}: {name} has {_shown(unknown[0])}, expected only {', '.join(_ROPE_KEYS)}; other rope types, and "
            f"parameters by layer, are not supported"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ModelConfigError(f"{origin}: {name}.rope_type is {_shown(kind)}, expected default or llama3")
    if rope.get("type", kind) != kind:
        raise ModelConfigError(
            f"{origin}: {name} says rope_type {_shown(kind)} and type {_shown(rope['type'])}, expected one"
        )
    if not one_of(1, 1.0)(rope.get("partial_rotary_factor", 1)):
        raise ModelConfigError(
            f"{origin}: {name}.partial_rotary_factor is {_shown(rope['partial_rotary_factor'])}, expected 1.0"
        )
    where = f"{name}.rope_theta" if "rope_theta" in rope else "rope_theta"
    theta = _positive(rope.get("rope_theta", raw.get("rope_theta", DEFAULT_ROPE_THETA)), where, origin)
    if kind == "default":
        return Rope(theta, None)
    return Rope(theta, _llama3(raw, rope, name, max_position_embeddings, origin))


def _llama3(
    raw: Mapping[str, Any], rope: Mapping[str, Any], name: str, max_position_embeddings: int, origin: str
) -> dict[str, float]:
    original = "original_max_position_embeddings"
    rope = {original: max_position_embeddings} | dict(rope)
    if original in raw and raw[original] != rope[original]:
        raise ModelConfigError(
            f"{origin}: {original} is {_shown(raw[original])}, but {_shown(rope[original])} in {name}; expected one"
        )
    scaling = {}
    for key in ("factor", "low_freq_factor", "high_freq_factor", original):
        if key not in rope:
            raise ModelConfigError(f"{origin}: required field {name}.{key} is missing")
        scaling[key] = _positive(rope[key], f"{name}.{key}", origin)
    if scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ModelConfigError(f"{origin}: {name}.low_freq_factor must be below high_freq_factor")
    return scaling


def _positive(value: Any, name: str, origin: str) -> float:
    if not is_number(value) or value <= 0:
        raise ModelConfigError(f"{origin}: {name} is {_shown(value)}, expected a positive number")
    return value


def check_model_type(raw: Mapping[str, Any], families: Sequence[ModelFamily], origin: str) -> ModelFamily:
    """The family that both `architectures` (which vLLM goes by) and `model_type` (transformers) name.

    Raises:
      ModelConfigError: they name none of those given, or disagree.
    """
    names = raw.get("architectures")
    by_name = {family.architecture: family for family in families}
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(by_name):
        shown = _shown(names[0]) if isinstance(names, list) and len(names) == 1 else _shown(names)
        raise ModelConfigError(
            f"{origin}: architectures {shown} is not supported; expected one of {', '.join(by_name)}; model.family "
            f"names a family of your own"
        )
    family = by_name[names[0]]
    if raw.get("model_type", family.model_type) != family.model_type:
        raise ModelConfigError(
            f"{origin}: model_type is {_shown(raw['model_type'])}, but architectures says {names[0]}; expected "
            f"model_type {family.model_type!r}"
        )
    return family


def _shown(value: Any) -> str:
    """A value of somebody's file, short and free of control characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."

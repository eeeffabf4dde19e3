"""What a model's config.json says: one row per key, read as transformers reads it or refused by name; free of JAX.

A key without a row does not change what Llama 3, Qwen2.5 or Qwen3 compute and is ignored. The rows follow transformers'
configuration classes, and the attributes that its models and vLLM's look up by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from learner_jax.runtime import WeirError

Family = Literal["llama", "qwen2", "qwen3"]

_FAMILIES: tuple[Family, ...] = ("llama", "qwen2", "qwen3")
_QWEN: tuple[Family, ...] = ("qwen2", "qwen3")
_LARGEST = 2**31 - 1
_MOST_LAYERS = 10_000
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_MISSING: Any = object()


class ModelConfigError(WeirError, ValueError):
    """A model's config.json asks for something that this decoder does not compute, or is damaged."""

    can_heal = False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_size(value: Any) -> bool:
    return _is_int(value) and value > 0


def _is_float(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_number(value: Any) -> bool:
    return _is_float(value) or (isinstance(value, int) and not isinstance(value, bool))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_end(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, list) and all(map(_is_int, value)))


def _is_even(value: Any) -> bool:
    return _is_int(value) and value > 0 and value % 2 == 0


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(known) and value == known for known in allowed)


@dataclass(frozen=True)
class Key:
    """One key of config.json.

    Attributes:
      expected: what `fits` takes, in words.
      default: of the family's configuration class in transformers; `_MISSING` where a model must state it.
      families: those that the row holds for.
    """

    name: str
    expected: str
    fits: Callable[[Any], bool]
    default: Any = None
    families: tuple[Family, ...] = _FAMILIES


#: What the decoder computes with.
READ = (
    Key("vocab_size", "a positive integer", _is_size, _MISSING),
    Key("hidden_size", "a positive integer", _is_size, _MISSING),
    Key("intermediate_size", "a positive integer", _is_size, _MISSING),
    Key(
        "num_hidden_layers",
        f"an integer from 1 to {_MOST_LAYERS}",
        lambda value: _is_size(value) and value <= _MOST_LAYERS,
        _MISSING,
    ),
    Key("num_attention_heads", "a positive integer", _is_size, _MISSING),
    Key("num_key_value_heads", "a positive integer or null", _or_null(_is_size), None, ("llama",)),
    Key("num_key_value_heads", "a positive integer or null", _or_null(_is_size), 32, _QWEN),
    Key("head_dim", "a positive even integer or null", _or_null(_is_even), None, ("llama",)),
    Key("head_dim", "a positive even integer", _is_even, _MISSING, ("qwen2",)),
    Key("head_dim", "a positive even integer", _is_even, 128, ("qwen3",)),
    Key("rms_norm_eps", "a number with a decimal point", _is_float, 1e-6),
    Key("tie_word_embeddings", "true or false", _is_bool, False),
    Key("attention_bias", "true or false", _is_bool, False, ("llama",)),
    Key("attention_bias", "false: vLLM's Qwen3 would leave out o_proj's bias", _one_of(False), False, ("qwen3",)),
    Key("mlp_bias", "true or false", _is_bool, False, ("llama",)),
    Key("max_position_embeddings", "a positive integer", _is_size, 2048, ("llama",)),
    Key("max_position_embeddings", "a positive integer", _is_size, 32768, _QWEN),
)

#: What changes no result as long as it is what the family's configuration class takes.
_TYPED = (
    Key("initializer_range", "a number from 0.0 to 1.0", lambda v: _is_float(v) and 0 <= v <= 1, 0.02, ("llama",)),
    Key("initializer_range", "a number with a decimal point", _is_float, 0.02, _QWEN),
    Key("attention_dropout", "a number or null", _or_null(_is_number), 0.0, ("llama",)),
    Key("attention_dropout", "a number", _is_number, 0.0, _QWEN),
    Key("use_cache", "true or false", _is_bool, True),
    Key("pretraining_tp", "an integer or null", _or_null(_is_int), 1, ("llama",)),
    Key("bos_token_id", "a token id or null", _or_null(_is_int)),
    Key("eos_token_id", "a token id, a list of them or null", _or_null(_is_end)),
    Key("pad_token_id", "a token id or null", _or_null(_is_int)),
    Key("sliding_window", "an integer or null", _or_null(_is_int), None, _QWEN),
    Key("max_window_layers", "an integer", _is_int, 28, _QWEN),
    Key("dtype", f"one of {', '.join(_DTYPES)} or null", _one_of(None, *_DTYPES)),
    Key("torch_dtype", f"one of {', '.join(_DTYPES)} or null", _one_of(None, *_DTYPES)),
    Key("auto_map", "an object; its code is never run", lambda value: isinstance(value, dict), {}),
    Key("id2label", "an object or null", _or_null(lambda value: isinstance(value, dict))),
)

#: What transformers or vLLM would compute with, and this decoder does not.
_FIXED = (
    Key("hidden_act", '"silu"', _one_of("silu"), "silu"),
    Key("use_sliding_window", "false: sliding-window attention is not supported", _one_of(False), False),
    Key("sliding_window", "null: sliding-window attention is not supported", _one_of(None), None, ("llama",)),
    Key("attention_chunk_size", "null: chunked attention is not supported", _one_of(None)),
    Key("dual_chunk_attention_config", "null: chunked attention is not supported", _one_of(None)),
    Key("is_causal", "true: attention is causal", _one_of(True), True),
    Key("is_encoder_decoder", "false: only decoders are supported", _one_of(False), False),
    Key("quantization_config", "null: quantised weights can't be trained", _one_of(None)),
    Key("partial_rotary_factor", "1.0: partial rotation is not supported", _one_of(None, 1, 1.0)),
    Key("logit_scale", "1.0: vLLM alone would scale", _one_of(None, 1, 1.0)),
    Key("qk_norm", "false: vLLM alone would normalise", _one_of(None, False), None, ("llama", "qwen2")),
    Key("bias", "false: vLLM alone would add biases; set attention_bias", _one_of(None, False), None, ("llama",)),
    Key("qkv_bias", "no such key: vLLM alone heeds it; set attention_bias", lambda value: False, None, ("llama",)),
    *(
        Key(name, "null: only plain language models are supported", _one_of(None))
        for name in ("text_config", "text_encoder", "decoder", "generator", "vision_config", "audio_config")
    ),
    Key("per_layer_config", "null: all layers are alike", _one_of(None)),
    Key("fusion_config", "null", _one_of(None)),
    Key("transformers_weights", "null: weights are in the files of the usual names", _one_of(None)),
)

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


def check_keys(raw: Mapping[str, Any], family: Family, origin: str) -> dict[str, Any]:
    """The values that the decoder computes with, defaults filled in; a null stays None.

    Raises:
      ModelConfigError: a key is missing, of a wrong type, or asks for something that is not computed.
    """
    values = {}
    for key in (*READ, *_TYPED, *_FIXED):
        if family not in key.families:
            continue
        if key.name in raw and not key.fits(raw[key.name]):
            raise ModelConfigError(f"{origin}: {key.name} is {_shown(raw[key.name])}, expected {key.expected}")
        if key in READ:
            values[key.name] = raw.get(key.name, key.default)
    if family == "qwen2" and values["head_dim"] is _MISSING:
        values["head_dim"] = None
    for name, value in values.items():
        if value is _MISSING:
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


def check_head_sizes(family: Family, values: Mapping[str, Any], origin: str) -> tuple[int, int]:
    """(number of key/value heads, head size) of `check_keys`' values; `ModelConfigError` where they don't fit."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    kv_heads = heads if values["num_key_value_heads"] is None else values["num_key_value_heads"]
    if heads % kv_heads:
        raise ModelConfigError(
            f"{origin}: num_key_value_heads is {kv_heads}, expected a divisor of num_attention_heads {heads}"
        )
    if family == "llama" and hidden % heads:
        raise ModelConfigError(f"{origin}: hidden_size is {hidden}, expected a multiple of num_attention_heads {heads}")
    shared = hidden // heads
    head_dim = shared if values["head_dim"] is None else values["head_dim"]
    if not _is_even(head_dim):
        raise ModelConfigError(
            f"{origin}: hidden_size {hidden} over num_attention_heads {heads} makes heads of {head_dim}, expected an "
            f"even size"
        )
    if family == "qwen2" and head_dim != shared:
        raise ModelConfigError(
            f"{origin}: head_dim is {head_dim}, expected {shared}, hidden_size over num_attention_heads: vLLM's Qwen2 "
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
    if not _one_of(1, 1.0)(rope.get("partial_rotary_factor", 1)):
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
    if not _is_number(value) or value <= 0:
        raise ModelConfigError(f"{origin}: {name} is {_shown(value)}, expected a positive number")
    return value


def check_model_type(raw: Mapping[str, Any], architectures: Mapping[str, Family], origin: str) -> Family:
    """The family that both `architectures` (which vLLM goes by) and `model_type` (transformers) name.

    Raises:
      ModelConfigError: they name none of those supported, or disagree.
    """
    names = raw.get("architectures")
    known = ", ".join(architectures)
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(architectures):
        shown = _shown(names[0]) if isinstance(names, list) and len(names) == 1 else _shown(names)
        raise ModelConfigError(f"{origin}: architectures {shown} is not supported; expected one of {known}")
    family = architectures[names[0]]
    if raw.get("model_type", family) != family:
        raise ModelConfigError(
            f"{origin}: model_type is {_shown(raw['model_type'])}, but architectures says {names[0]}; expected "
            f"model_type {family!r}"
        )
    return family


def _shown(value: Any) -> str:
    """A value of somebody's file, short and free of control characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def rows(family: Family) -> Sequence[Key]:
    """Every row that holds for a family."""
    return [key for key in (*READ, *_TYPED, *_FIXED) if family in key.families]

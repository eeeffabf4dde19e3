"""The keys of a model's config.json: one row per key and family, as transformers reads it; free of JAX.

A key without a row does not change what the family computes and is ignored. The rows follow transformers' configuration
classes, and the attributes that its models and vLLM's look up by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LARGEST = 2**31 - 1
_MOST_LAYERS = 10_000
_DTYPES = ("float32", "bfloat16", "float16", "float64")
#: Default of a key that a model must state.
MISSING: Any = object()


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_size(value: Any) -> bool:
    return is_int(value) and value > 0


def is_float(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def is_number(value: Any) -> bool:
    return is_float(value) or (isinstance(value, int) and not isinstance(value, bool))


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_end(value: Any) -> bool:
    return is_int(value) or (isinstance(value, list) and all(map(is_int, value)))


def is_even(value: Any) -> bool:
    return is_int(value) and value > 0 and value % 2 == 0


def or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(known) and value == known for known in allowed)


@dataclass(frozen=True)
class Key:
    """One key of config.json.

    Attributes:
      expected: what `fits` takes, in words.
      fits: whether a value is one that the family computes with, or one that changes no result.
      default: of the family's configuration class in transformers; `MISSING` where a model must state it.
      read: whether the decoder computes with the value.
    """

    name: str
    expected: str
    fits: Callable[[Any], bool]
    default: Any = field(default=None, hash=False)
    read: bool = False


def _read(name: str, expected: str, fits: Callable[[Any], bool], default: Any = MISSING) -> Key:
    return Key(name, expected, fits, default, read=True)


_LAYERS = f"an integer from 1 to {_MOST_LAYERS}"

#: Read in the same way of every family.
_SHARED_READ = (
    _read("vocab_size", "a positive integer", is_size),
    _read("hidden_size", "a positive integer", is_size),
    _read("intermediate_size", "a positive integer", is_size),
    _read("num_hidden_layers", _LAYERS, lambda value: is_size(value) and value <= _MOST_LAYERS),
    _read("num_attention_heads", "a positive integer", is_size),
    _read("rms_norm_eps", "a number with a decimal point", is_float, 1e-6),
    _read("tie_word_embeddings", "true or false", is_bool, False),
)

#: What changes no result as long as it is what the configuration classes take.
_SHARED_TYPED = (
    Key("use_cache", "true or false", is_bool, True),
    Key("bos_token_id", "a token id or null", or_null(is_int)),
    Key("eos_token_id", "a token id, a list of them or null", or_null(is_end)),
    Key("pad_token_id", "a token id or null", or_null(is_int)),
    Key("dtype", f"one of {', '.join(_DTYPES)} or null", one_of(None, *_DTYPES)),
    Key("torch_dtype", f"one of {', '.join(_DTYPES)} or null", one_of(None, *_DTYPES)),
    Key("auto_map", "an object; its code is never run", lambda value: isinstance(value, dict), {}),
    Key("id2label", "an object or null", or_null(lambda value: isinstance(value, dict))),
)

#: What transformers or vLLM would compute with, and the dense decoder does not.
_SHARED_FIXED = (
    Key("hidden_act", '"silu"', one_of("silu"), "silu"),
    Key("use_sliding_window", "false: sliding-window attention is not supported", one_of(False), False),
    Key("attention_chunk_size", "null: chunked attention is not supported", one_of(None)),
    Key("dual_chunk_attention_config", "null: chunked attention is not supported", one_of(None)),
    Key("is_causal", "true: attention is causal", one_of(True), True),
    Key("is_encoder_decoder", "false: only decoders are supported", one_of(False), False),
    Key("quantization_config", "null: quantised weights can't be trained", one_of(None)),
    Key("partial_rotary_factor", "1.0: partial rotation is not supported", one_of(None, 1, 1.0)),
    Key("logit_scale", "1.0: vLLM alone would scale", one_of(None, 1, 1.0)),
    *(
        Key(name, "null: only plain language models are supported", one_of(None))
        for name in ("text_config", "text_encoder", "decoder", "generator", "vision_config", "audio_config")
    ),
    Key("per_layer_config", "null: all layers are alike", one_of(None)),
    Key("fusion_config", "null", one_of(None)),
    Key("transformers_weights", "null: weights are in the files of the usual names", one_of(None)),
)

_SHARED = (*_SHARED_READ, *_SHARED_TYPED, *_SHARED_FIXED)
_NO_QK_NORM = Key("qk_norm", "false: vLLM alone would normalise", one_of(None, False))

LLAMA_KEYS = (
    *_SHARED,
    _read("num_key_value_heads", "a positive integer or null", or_null(is_size), None),
    _read("head_dim", "a positive even integer or null", or_null(is_even), None),
    _read("attention_bias", "true or false", is_bool, False),
    _read("mlp_bias", "true or false", is_bool, False),
    _read("max_position_embeddings", "a positive integer", is_size, 2048),
    Key("initializer_range", "a number from 0.0 to 1.0", lambda v: is_float(v) and 0 <= v <= 1, 0.02),
    Key("attention_dropout", "a number or null", or_null(is_number), 0.0),
    Key("pretraining_tp", "an integer or null", or_null(is_int), 1),
    Key("sliding_window", "null: sliding-window attention is not supported", one_of(None)),
    _NO_QK_NORM,
    Key("bias", "false: vLLM alone would add biases; set attention_bias", one_of(None, False)),
    Key("qkv_bias", "no such key: vLLM alone heeds it; set attention_bias", lambda value: False),
)

_QWEN_KEYS = (
    *_SHARED,
    _read("num_key_value_heads", "a positive integer or null", or_null(is_size), 32),
    _read("max_position_embeddings", "a positive integer", is_size, 32768),
    Key("initializer_range", "a number with a decimal point", is_float, 0.02),
    Key("attention_dropout", "a number", is_number, 0.0),
    Key("sliding_window", "an integer or null", or_null(is_int)),
    Key("max_window_layers", "an integer", is_int, 28),
)

QWEN2_KEYS = (*_QWEN_KEYS, _read("head_dim", "a positive even integer", is_even, None), _NO_QK_NORM)

QWEN3_KEYS = (
    *_QWEN_KEYS,
    _read("head_dim", "a positive even integer", is_even, 128),
    Key("attention_bias", "false: vLLM's Qwen3 would leave out o_proj's bias", one_of(False), False),
)

"""Every key of config.json against transformers: equal log-probs, or a refusal that names file and key."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax import models as model
from learner_jax.contracts import (
    BUILT_IN,
    ModelConfig,
    ModelConfigError,
    hf_shapes,
    parse_config_file,
    read_model_config,
)
from learner_jax.models import hf_folder as hf_io

SHAPE = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BASE: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen2": SHAPE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": SHAPE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8},
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ABSENT: Any = object()
#: Differences of two fp32 computations of these models; a wrong reading makes them 1e-2 and more.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)


def tokens_of(config: ModelConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (1, 24))


def tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: rng.normal("norm" in name, 0.4, shape).astype(np.float32) for name, shape in hf_shapes(config).items()
    }


@functools.cache
def our_logprobs(config: ModelConfig, folder: Path) -> np.ndarray:
    from safetensors.numpy import save_file

    save_file(tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    params = hf_io.load_parameters(folder, config)
    with jax.disable_jit():  # a program for each of many models would take most of the time
        stats = model.token_logprobs(model.merge(config, params), jnp.asarray(tokens_of(config), jnp.int32))
    return np.asarray(stats.logprobs)[:, 1:]


def their_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def their_logprobs(read: Any, config: ModelConfig) -> np.ndarray:
    """Of transformers' model of its own config, with the weights of ours."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_config(read, attn_implementation="eager", dtype=torch.float32).eval()
    values = {name: torch.from_numpy(value) for name, value in tensors(config).items()}
    missing, unexpected = theirs.load_state_dict(values, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    theirs.tie_weights()
    with torch.no_grad():
        ids = torch.from_numpy(tokens_of(config))
        scores = torch.log_softmax(theirs(ids).logits[:, :-1], dim=-1)
        return scores.gather(-1, ids[:, 1:, None])[..., 0].numpy()


class Reader:
    """Reads configs by us, and what we accept by transformers too; log-probs are computed once per model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "config.json"
        self._ours: dict[ModelConfig, np.ndarray] = {}
        self._theirs: dict[tuple[ModelConfig, str], np.ndarray] = {}
        self.accepted = 0

    def outcome(self, raw: dict[str, Any]) -> str:
        """ "equal", or why we refuse. Asserts that transformers loads what we accept, and computes the same."""
        self.path.write_text(json.dumps(raw))
        try:
            config = read_model_config(self._folder)
        except ModelConfigError as error:
            return str(error).removeprefix(f"{self.path}: ")
        if config not in self._ours:
            self._ours[config] = our_logprobs(config, self._folder)
        theirs = their_config(self._folder)
        key = config, json.dumps(theirs.to_dict(), sort_keys=True, default=str)
        if key not in self._theirs:
            self._theirs[key] = their_logprobs(theirs, config)
        np.testing.assert_allclose(self._ours[config], self._theirs[key], rtol=0, atol=TOLERANCE)
        self.accepted += 1
        return "equal"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("model"))


def changed(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (BASE[family] | changes).items() if value is not ABSENT}


# Each key in turn

#: Keys that no configuration class declares, but that transformers or vLLM look at.
EXTRA_KEYS = (
    *("head_dim", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "torch_dtype", "sliding_window"),
    *("layer_types", "quantization_config", "text_config", "is_causal", "partial_rotary_factor", "auto_map"),
)
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ODD_VALUES: tuple[Any, ...] = (ABSENT, None, "text", 3, True, [])
#: Keys whose odd values change no result, so that what transformers does with them is not ours to repeat.
FREE = {
    *("transformers_version", "chunk_size_feed_forward", "output_hidden_states", "return_dict"),
    *("problem_type", "label2id"),
}


def declared_keys(family: str) -> list[str]:
    from transformers import AutoConfig

    fields = dataclasses.fields(AutoConfig.for_model(family))
    return sorted({field.name for field in fields} | set(EXTRA_KEYS))


@pytest.mark.parametrize("family", BASE)
def test_every_key_absent_null_or_of_another_type_is_equal_or_refused(family: str, reader: Reader) -> None:
    before = reader.accepted
    needed = {*SIZES, "architectures"} | ({"num_key_value_heads"} if family != "llama" else set())
    for key in declared_keys(family):
        for value in ODD_VALUES if key not in FREE else ():
            outcome = reader.outcome(changed(family, {key: value}))
            assert outcome == "equal" or key in outcome, (key, value, outcome)
            if value is ABSENT:
                assert (outcome == "equal") == (key not in needed), (key, outcome)
    assert reader.accepted > before + 40


def test_a_family_has_one_row_a_key_and_those_read_are_known_to_transformers() -> None:
    assert [family.name for family in BUILT_IN] == list(BASE)
    for family in BUILT_IN:
        names = [key.name for key in family.keys]
        assert len(names) == len(set(names)), names
        assert {key.name for key in family.read_keys} <= set(declared_keys(family.name))


# Values that mean something

FULL, SLIDING = "full_attention", "sliding_attention"
SOUND: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"head_dim": ABSENT}),
    ("llama", {"head_dim": ABSENT}),
    ("llama", {"head_dim": None}),
    ("llama", {"head_dim": 6}),
    ("qwen2", {"head_dim": 4}),
    ("llama", {"num_key_value_heads": ABSENT}),
    ("qwen2", {"num_key_value_heads": None}),
    ("qwen3", {"num_key_value_heads": 4}),
    ("qwen2", {"num_key_value_heads": ABSENT, "num_attention_heads": 32, "hidden_size": 64}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", {"attention_bias": False, "mlp_bias": True}),
    ("qwen3", {"attention_bias": False, "mlp_bias": True}),
    ("qwen3", {"rms_norm_eps": 0.1}),
    ("llama", {"rope_theta": 50}),
    ("qwen3", {"rope_theta": 50.0, "rope_parameters": {"rope_type": "default"}}),
    ("qwen3", {"rope_theta": 50.0, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}),
    ("qwen3", {"rope_theta": None, "rope_parameters": {"rope_theta": 700.0}}),
    ("llama", {"rope_scaling": LLAMA3, "rope_theta": 50.0}),
    ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 50.0}}),
    ("llama", {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    ("llama", {"rope_scaling": {"rope_type": "default", "rope_theta": 50.0}, "rope_parameters": LLAMA3}),
    ("llama", {"rope_scaling": {}, "rope_parameters": LLAMA3}),
    ("qwen2", {"rope_scaling": {"type": "default"}, "rope_theta": 50.0}),
    ("llama", {"rope_scaling": {key: LLAMA3[key] for key in list(LLAMA3)[:-1]}, "max_position_embeddings": 24}),
    ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16}),
    ("qwen3", {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {"layer_types": [FULL, FULL], "sliding_window": 4}),
    ("llama", {"layer_types": [FULL, FULL]}),
    ("llama", {"dtype": "bfloat16", "torch_dtype": "float16", "pretraining_tp": 2, "attention_dropout": 0.5}),
    ("qwen3", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "some_new_key": {"a": 1}}),
    ("llama", {"eos_token_id": [1, 2], "bos_token_id": None, "pad_token_id": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), SOUND)
def test_what_a_config_means_is_what_transformers_reads(family: str, changes: dict[str, Any], reader: Reader) -> None:
    assert reader.outcome(changed(family, changes)) == "equal"


NESTED = {FULL: {"rope_type": "default", "rope_theta": 50.0}}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"head_dim": 7}, "head_dim is 7, expected a positive even"),
    ("llama", {"head_dim": 0}, "head_dim is 0"),
    ("qwen2", {"head_dim": 8}, "head_dim is 8, expected 4"),
    ("qwen2", {"head_dim": None}, "head_dim is null"),
    ("llama", {"hidden_size": 18}, "hidden_size is 18, expected a multiple of num_attention_heads 4"),
    ("qwen2", {"hidden_size": 20}, "makes heads of 5"),
    ("qwen3", {"num_key_value_heads": ABSENT}, "num_key_value_heads is 32, expected a divisor"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected an integer from 1"),
    ("llama", {"vocab_size": -1}, "vocab_size is -1"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
    ("llama", {"hidden_act": "gelu"}, 'hidden_act is "gelu", expected "silu"'),
    ("qwen3", {"rope_theta": None}, "rope_theta is null, expected a positive number"),
    ("qwen3", {"rope_theta": 50.0, "rope_parameters": {"rope_theta": None}}, r"rope_parameters\.rope_theta is null"),
    ("qwen3", {"rope_parameters": NESTED}, "rope_parameters has \"full_attention\""),
    ("llama", {"rope_parameters": NESTED}, "rope_parameters has \"full_attention\""),
    ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, r'rope_scaling.rope_type is "yarn"'),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, r'rope_scaling.rope_type is "linear"'),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, r'rope_scaling.rope_type is "dynamic"'),
    ("llama", {"rope_scaling": {"rope_type": None}}, r"rope_scaling.rope_type is null"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "type": "default"}}, "rope_scaling says rope_type"),
    ("llama", {"rope_scaling": LLAMA3 | {"factor": "8"}}, r'rope_scaling\.factor is "8"'),
    ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor must be below"),
    ("llama", {"rope_scaling": {"rope_type": "llama3"}}, r"required field rope_scaling\.factor is missing"),
    ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 8}, "original_max_position_embeddings is 8"),
    ("llama", {"rope_scaling": LLAMA3 | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4}, "use_sliding_window is true"),
    ("qwen3", {"layer_types": [FULL, SLIDING]}, "layer_types is .*sliding-window"),
    ("llama", {"layer_types": [SLIDING, SLIDING], "sliding_window": 4}, "sliding_window is 4"),
    ("qwen3", {"layer_types": [FULL]}, "layer_types is"),
    ("llama", {"quantization_config": {}}, "quantization_config is {}"),
    ("llama", {"dtype": "auto"}, 'dtype is "auto"'),
    ("llama", {"is_causal": False}, "is_causal is false"),
    ("qwen3", {"attention_bias": True}, "attention_bias is true, expected false: vLLM"),
    ("llama", {"attention_bias": True, "qkv_bias": False}, "qkv_bias is false, expected no such key"),
    ("llama", {"pad_token_id": 23}, "pad_token_id is 23, expected an id below vocab_size 23"),
    ("llama", {"model_type": ABSENT}, "'model_type' is missing; expected 'llama'"),
    ("llama", {"model_type": "mistral"}, 'model_type is "mistral", but architectures says LlamaForCausalLM'),
    ("qwen3", {"architectures": ["Qwen2ForCausalLM"]}, 'model_type is "qwen3", but architectures'),
    ("qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, "architectures .* is not supported"),
    ("qwen3", {"architectures": ABSENT}, "architectures null is not supported; expected one of LlamaForCausalLM"),
    ("llama", {"transformers_weights": "../x.safetensors"}, "transformers_weights is"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_computed_is_refused_by_its_key(
    family: str, changes: dict[str, Any], message: str, reader: Reader
) -> None:
    outcome = reader.outcome(changed(family, changes))
    assert re.search(message, outcome), outcome
    with pytest.raises(ModelConfigError, match=re.escape(f"{reader.path}: ")):
        read_model_config(reader.path.parent)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "holds a list, expected an object"),
        (b"null", "holds a NoneType, expected an object"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"\xef\xbb\xbf{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"architectures": "LlamaForCausalLM"}', 'architectures "LlamaForCausalLM" is not supported'),
        (b'{"architectures": [{}]}', "architectures {} is not supported"),
        (b'{"architectures": ["\\u001b[2J"]}', r"architectures .{1,2}u001b\[2J. is not supported"),
    ],
    ids=range(9),
)
def test_damaged_configs_are_explained(data: bytes, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message) as raised:
        parse_config_file(data, origin="folder/config.json")
    assert "folder/config.json" in str(raised.value)
    assert "\x1b" not in str(raised.value)

"""Makes a small Qwen3 model folder of the ordinary Hugging Face kind: random weights, tokenizer trained on given texts.

The tokenizer is byte-level BPE over pieces that take their spaces along, with every digit a token of its own: words of
a prompt template become one token each, and numbers keep their place values visible to a model too small to learn
them from arbitrary digit groups.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from learner_jax.contracts import hf_shapes, parse_model_config
from learner_jax.runtime import WeirError

PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN = "<pad>", "<eos>", "<unk>"
_SPECIAL_TOKENS = [PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN]

#: One digit; or a run of other characters with the spaces around it; or spaces alone.
_PIECES = r"\d| *[^\d\s]+ *|\s+"

#: The embedding's rows are rounded up to this, so that they divide among devices.
_VOCAB_MULTIPLE = 16

_INIT_STD = 0.02


class ModelShape(Protocol):
    """What `create_model` reads from its settings."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...


class CreateModelError(WeirError, ValueError):
    """A model can't be made from these settings or texts."""

    can_heal = False


def create_model(
    out_dir: str | Path, shape: ModelShape, texts: Iterable[str], *, seed: int, max_position_embeddings: int = 4096
) -> None:
    """Writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    Same arguments, same bytes. The folder appears under its name complete or not at all.

    Args:
      out_dir: folder to make; must not exist, or be empty.
      texts: prompts and answers of the task; characters outside them become the unknown token.
      seed: of the weights, fp32, normal with standard deviation 0.02 (norms: 1).

    Raises:
      CreateModelError: the folder is in use, there are no texts, or their characters exceed `shape.vocab_size`.
    """
    target = Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CreateModelError(f"{target} exists and is not an empty folder; remove it or choose another")
    tokenizer = train_tokenizer(texts, shape.vocab_size)
    config = _config(shape, tokenizer, max_position_embeddings)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tokenizer.save(str(partial / "tokenizer.json"))
        _write_json(partial / "tokenizer_config.json", _tokenizer_config(max_position_embeddings))
        _write_json(partial / "generation_config.json", _generation_config(config))
        _write_json(partial / "config.json", config)
        save_file(_random_weights(config, seed), partial / "model.safetensors", metadata={"format": "pt"})
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` tokens; its alphabet is the bytes that occur in the texts."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=_SPECIAL_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size == len(_SPECIAL_TOKENS):
        raise CreateModelError("no texts to train the tokenizer on; expected prompts and answers of the task")
    if size > vocab_size:
        raise CreateModelError(
            f"the task's texts have {size - len(_SPECIAL_TOKENS)} different characters, more than fit in "
            f"model.create.vocab_size {vocab_size}; set it to {size} or more"
        )
    return tokenizer


def _config(shape: ModelShape, tokenizer: Tokenizer, max_position_embeddings: int) -> dict[str, Any]:
    if shape.num_heads % shape.num_kv_heads:
        raise CreateModelError(
            f"model.create.num_heads {shape.num_heads} is no multiple of num_kv_heads {shape.num_kv_heads}"
        )
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": -(-tokenizer.get_vocab_size() // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-6,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "initializer_range": _INIT_STD,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(EOS_TOKEN),
        "pad_token_id": tokenizer.token_to_id(PAD_TOKEN),
        "torch_dtype": "float32",
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {"eos_token_id": [config["eos_token_id"]], "pad_token_id": config["pad_token_id"], "do_sample": True}


def _tokenizer_config(max_position_embeddings: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "unk_token": UNKNOWN_TOKEN,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_position_embeddings,
    }


def _random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """float32 tensors under their Hugging Face names; norm weights are the one-dimensional ones."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, dims in sorted(hf_shapes(parse_model_config(config, origin="model.create")).items()):
        if len(dims) == 1:
            weights[name] = np.ones(dims, np.float32)
        else:
            weights[name] = (_INIT_STD * generator.standard_normal(dims)).astype(np.float32)
    return weights


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

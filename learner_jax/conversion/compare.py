"""Compares a model folder with the checkpoint that it stands for: every tensor's bytes, and the model's own log-probs.

What is compared are the checkpoint's values rounded to each tensor's dtype in the folder, so that a single bit shows.
Bytes are compared a block at a time; log-probs need the whole model in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from flax.traverse_util import unflatten_dict

from learner_jax.contracts import EMBED, HEAD, ModelConfig, hf_shapes, is_buffer, parameters, read_model_config
from learner_jax.conversion.checkpoint_reader import Source, blocks, stream
from learner_jax.conversion.hf_layout import DTYPES, Index, Weights, byte_view
from learner_jax.conversion.hf_writer import pieces
from learner_jax.models import Params, load_parameters, merge, token_logprobs
from learner_jax.runtime import printable

Progress = Callable[[int], None]


@dataclass
class _Seen:
    """What was read of one tensor: hashes of both sides' bytes in the order of reading, and how they differ."""

    expected: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    found: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    differing: int = 0
    transposed: bool = False


def compare_tensors(source: Source, config: ModelConfig, folder: Path, progress: Progress) -> list[str]:
    """What differs, one line a tensor: names, shapes, dtypes, content.

    Args:
      progress: told of bytes read from the checkpoint.
    """
    with Weights(folder) as weights:
        tied_head = config.tie_word_embeddings and HEAD in weights.tensors
        problems = _headers(weights, config)
        seen: dict[str, _Seen] = {}
        for _, block, values in stream(source, [(None, block) for block in blocks(source, config)]):
            for name, index, value in pieces(config, block, values):
                for stored in (name, HEAD) if name == EMBED and tied_head else (name,):
                    if stored not in problems:
                        _look(seen.setdefault(stored, _Seen()), weights, stored, index, value)
            progress(values.nbytes)
    belongs = {state.expected.digest(): name for name, state in seen.items() if name != HEAD or not tied_head}
    for name, state in seen.items():
        if state.expected.digest() == state.found.digest():
            continue
        owner = belongs.get(state.found.digest())
        what = (
            f"it holds the values of {owner}"
            if owner
            else "it is transposed"
            if state.transposed
            else f"{state.differing} values differ"
        )
        problems[name] = (
            f"{name}: expected the checkpoint's values, xxh3_128 {state.expected.hexdigest()}, "
            f"got {state.found.hexdigest()}: {what}"
        )
    return list(problems.values())


def _headers(weights: Weights, config: ModelConfig) -> dict[str, str]:
    expected = hf_shapes(config)
    problems = {
        name: f"{name}: expected in the folder, but missing" for name in expected if name not in weights.tensors
    }
    if config.tie_word_embeddings:
        expected[HEAD] = expected[EMBED]  # a tied head may be stored as well
    usual = _usual_dtype(weights)
    for name, placed in weights.tensors.items():
        if is_buffer(name):
            continue
        if name not in expected:
            problems[name] = f"{printable(name)}: not a tensor of this model, but in the folder"
        elif placed.shape != expected[name]:
            problems[name] = f"{name}: expected shape {expected[name]}, got {placed.shape}"
        elif placed.dtype not in (usual, "F32"):  # some models keep their norms in fp32
            problems[name] = f"{name}: expected dtype {usual} as of most values, or F32, got {placed.dtype}"
    return problems


def _usual_dtype(weights: Weights) -> str:
    """That of most values in the folder."""
    values: Counter[str] = Counter()
    for placed in weights.tensors.values():
        values[placed.dtype] += math.prod(placed.shape) if placed.dtype in DTYPES else 0
    return max(values, key=values.__getitem__, default="")


def _look(state: _Seen, weights: Weights, name: str, index: Index, value: np.ndarray) -> None:
    found = weights.read_part(name, index)
    expected = np.ascontiguousarray(value.astype(found.dtype, copy=False))
    for side, values in ((state.expected, expected), (state.found, found)):
        side.update(byte_view(values))
    bits = np.dtype(f"u{found.dtype.itemsize}")
    a, b = expected.view(bits), found.view(bits)
    if not np.array_equal(a, b):
        state.differing += int(np.count_nonzero(a != b))
        is_whole = found.shape == weights.tensors[name].shape
        state.transposed = is_whole and found.ndim == 2 and np.array_equal(a, b.T)


def golden_tokens(config: ModelConfig) -> np.ndarray:
    """int32[4, 32] of fixed token ids, for comparing log-probs where no tokenizer need be."""
    length = min(32, config.max_position_embeddings)
    return np.random.default_rng(0).integers(0, config.vocab_size, (4, length)).astype(np.int32)


def source_logprobs(source: Source, config: ModelConfig, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float32[B, T] of the learner's model on the checkpoint's values; the first token's are 0.

    Args:
      folder: each value is rounded to the dtype that its tensor has there.
    """
    with Weights(folder) as weights:
        dtypes = {name: DTYPES[placed.dtype] for name, placed in weights.tensors.items() if placed.dtype in DTYPES}
    flat = {
        row.path: np.empty((config.num_layers, *row.shape) if row.stacked else row.shape, np.float32)
        for row in parameters(config)
    }
    for _, block, values in stream(source, [(None, block) for block in blocks(source, config)]):
        rounded = np.empty(values.shape, np.float32)
        for number, (name, _, value) in enumerate(pieces(config, block, values)):
            rounded[number if block.row.stacked else ...] = value.astype(dtypes[name])
        flat[block.row.path][block.index] = rounded
    return _logprobs(unflatten_dict(flat, sep="."), config, tokens)


def folder_logprobs(folder: Path, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """float32[B, T] of the learner's model on a model folder."""
    return _logprobs(load_parameters(folder, config), config, tokens)


def folder_golden(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Fixed token ids int32[B, T] and the learner's log-probs float32[B, T] of them on a model folder; the first is 0.

    Raises:
      ModelConfigError: it is no folder of a model that Weir knows.
    """
    config = read_model_config(folder)
    tokens = golden_tokens(config)
    return tokens, folder_logprobs(folder, config, tokens)


def _logprobs(params: Params, config: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    compute = jax.jit(lambda params, tokens: token_logprobs(merge(config, params), tokens).logprobs)
    return np.asarray(compute(params, jnp.asarray(tokens)))

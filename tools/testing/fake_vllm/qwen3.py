"""A Qwen3 decoder in plain NumPy, small and slow: what the fake engine samples from, an oracle for the learner's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from learner_jax.contracts import QWEN3, ModelConfig, hf_shapes
from learner_jax.runtime import WeirError


class UnsupportedModelError(WeirError, ValueError):
    """A model that this forward pass does not compute."""


@dataclass(frozen=True)
class Qwen3:
    """A dense decoder of the Qwen3 kind (Qwen3 Technical Report, arXiv 2505.09388): GQA, QK-norm, RoPE, SwiGLU.

    Attributes:
      weights: float32 tensors by their Hugging Face names.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        config = self.config
        plain = hf_shapes(replace(config, family=QWEN3, options=()))
        if hf_shapes(config) != plain or config.family.decoder or config.rope_scaling is not None:
            raise UnsupportedModelError(
                f"model family {config.family.name} with these options is not computed here; expected a plain qwen3"
            )
        wrong = {name for name, shape in hf_shapes(config).items() if self.weights[name].shape != shape}
        if wrong:
            raise UnsupportedModelError(f"tensors have other shapes than the configuration says: {sorted(wrong)[:4]}")

    def logits(self, tokens: np.ndarray, first: int = 0) -> np.ndarray:
        """float32[B, T - first, V]: what follows each position from `first` on, given the tokens up to it.

        Args:
          tokens: int[B, T], rows without padding; T at least 1.
        """
        config, weights = self.config, self.weights
        length = tokens.shape[1]
        cosines, sines = rotations(length, config.head_dim, config.rope_theta)
        causal = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        hidden = weights["model.embed_tokens.weight"][tokens]
        for layer in range(config.num_layers):
            name = f"model.layers.{layer}"
            normed = rms_norm(hidden, weights[f"{name}.input_layernorm.weight"], config.rms_norm_eps)
            hidden = hidden + self._attention(f"{name}.self_attn", normed, cosines, sines, causal)
            normed = rms_norm(hidden, weights[f"{name}.post_attention_layernorm.weight"], config.rms_norm_eps)
            hidden = hidden + self._feed_forward(f"{name}.mlp", normed)
        normed = rms_norm(hidden[:, first:], weights["model.norm.weight"], config.rms_norm_eps)
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        return normed @ weights[head].T

    def _attention(
        self, name: str, hidden: np.ndarray, cosines: np.ndarray, sines: np.ndarray, causal: np.ndarray
    ) -> np.ndarray:
        config, weights = self.config, self.weights
        rows, length, _ = hidden.shape

        def heads(which: str, count: int) -> np.ndarray:
            projected = hidden @ weights[f"{name}.{which}_proj.weight"].T
            return projected.reshape(rows, length, count, config.head_dim).transpose(0, 2, 1, 3)

        queries, keys = heads("q", config.num_heads), heads("k", config.num_kv_heads)
        queries = rotated(rms_norm(queries, weights[f"{name}.q_norm.weight"], config.rms_norm_eps), cosines, sines)
        keys = rotated(rms_norm(keys, weights[f"{name}.k_norm.weight"], config.rms_norm_eps), cosines, sines)
        shared = config.num_heads // config.num_kv_heads
        keys, values = (np.repeat(each, shared, axis=1) for each in (keys, heads("v", config.num_kv_heads)))
        scores = queries @ keys.transpose(0, 1, 3, 2) / np.float32(np.sqrt(config.head_dim)) + causal
        mixed = softmax(scores) @ values
        return mixed.transpose(0, 2, 1, 3).reshape(rows, length, -1) @ weights[f"{name}.o_proj.weight"].T

    def _feed_forward(self, name: str, hidden: np.ndarray) -> np.ndarray:
        gate = hidden @ self.weights[f"{name}.gate_proj.weight"].T
        up = hidden @ self.weights[f"{name}.up_proj.weight"].T
        return (gate / (1.0 + np.exp(-gate)) * up) @ self.weights[f"{name}.down_proj.weight"].T


def rms_norm(values: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """Root mean square normalisation over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""
    return values / np.sqrt(np.mean(values * values, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def rotations(length: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32[T, H], of rotary positions (RoFormer, arXiv 2104.09864), halves rotated together."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = np.outer(np.arange(length), np.concatenate([frequencies, frequencies]))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(values: np.ndarray, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
    first, second = np.split(values, 2, axis=-1)
    return values * cosines + np.concatenate([-second, first], axis=-1) * sines


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probs over the last axis, float64 inside."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

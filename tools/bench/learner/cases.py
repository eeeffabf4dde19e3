"""What the learner benchmark feeds to every side: model shapes, weights and batches, each a function of one seed.

A batch is written as one .npz in the form that the peers' scripts take: prompts padded at the left, answers at the
right, id 0 for padding and never sampled. The uniform batch and the weights repeat, draw by draw, those that the
scripts make by themselves, so that figures compare with runs of the scripts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from learner_jax.contracts import ModelConfig, parameters, parse_model_config

GROUP = 8
#: Of the log-probs that a batch holds, around those under the start weights; nats.
NOISE = 0.1
#: Of the loss, as the peers' scripts have them by default.
KL_COEFFICIENT = 0.04
CLIP = 0.2

_MATRIX_STDDEV = 0.02


@dataclass(frozen=True)
class Shape:
    """A Qwen3 of this size; each field is a flag of the peers' scripts."""

    layers: int = 4
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    vocab: int = 4096
    tied: bool = True

    def flags(self) -> list[str]:
        numbers = [(f"--{f.name.replace('_', '-')}", str(getattr(self, f.name))) for f in fields(self)[:-1]]
        return [text for pair in numbers for text in pair] + ["--tied" if self.tied else "--no-tied"]

    def config(self) -> ModelConfig:
        return parse_model_config(
            {
                "architectures": ["Qwen3ForCausalLM"],
                "num_hidden_layers": self.layers,
                "hidden_size": self.hidden,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "head_dim": self.head_dim,
                "intermediate_size": self.intermediate,
                "vocab_size": self.vocab,
                "tie_word_embeddings": self.tied,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
            },
            origin="tools.bench.learner",
        )


SMALL = Shape()
#: As in the models' config.json.
MODELS = {
    "Qwen3-1.7B": Shape(28, 2048, 16, 8, 128, 6144, 151_936, tied=True),
    "Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True),
    "Qwen3-8B": Shape(36, 4096, 32, 8, 128, 12_288, 151_936, tied=False),
}


@dataclass(frozen=True)
class PaddedBatch:
    """One batch as the peers take it; field names are theirs. P prompt slots, C answer slots.

    Attributes:
      old_noise, ref_noise: what is added to the log-probs under the start weights to give those of the behaviour
        policy and of the reference, nats.
    """

    prompt_ids: Int[np.ndarray, "B P"]
    prompt_mask: Int[np.ndarray, "B P"]
    completion_ids: Int[np.ndarray, "B C"]
    completion_mask: Int[np.ndarray, "B C"]
    advantages: Float[np.ndarray, " B"]
    old_noise: Float[np.ndarray, "B C"]
    ref_noise: Float[np.ndarray, "B C"]

    @property
    def num_tokens(self) -> int:
        """Real ones, of prompts and answers, each sequence for itself."""
        return int(self.prompt_mask.sum() + self.completion_mask.sum())

    @property
    def num_slots(self) -> int:
        return int(self.prompt_mask.size + self.completion_mask.size)

    def flags(self) -> list[str]:
        (batch, prompt), answer = self.prompt_ids.shape, self.completion_ids.shape[1]
        sizes = {"batch": batch, "seq": prompt + answer, "prompt-len": prompt, "group": GROUP}
        return [text for name, size in sizes.items() for text in (f"--{name}", str(size))]

    def trimmed(self) -> PaddedBatch:
        """Padded only to the longest prompt and the longest answer that are there."""
        prompt, answer = (int(mask.sum(axis=1).max()) for mask in (self.prompt_mask, self.completion_mask))
        return PaddedBatch(
            prompt_ids=self.prompt_ids[:, -prompt:],
            prompt_mask=self.prompt_mask[:, -prompt:],
            completion_ids=self.completion_ids[:, :answer],
            completion_mask=self.completion_mask[:, :answer],
            advantages=self.advantages,
            old_noise=self.old_noise[:, :answer],
            ref_noise=self.ref_noise[:, :answer],
        )

    def write(self, path: Path) -> None:
        arrays: Mapping[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        np.savez(path, **arrays)

    @classmethod
    def read(cls, path: Path) -> PaddedBatch:
        with np.load(path) as file:
            return cls(**{name: file[name] for name in file.files})


def uniform(vocab: int, seed: int, *, batch: int = 16, prompt: int = 64, answer: int = 192) -> PaddedBatch:
    """Full rows: the batch that the peers' scripts make by default."""
    rng = np.random.default_rng(seed + 1)
    prompts, answers = rng.integers(1, vocab, (batch, prompt)), rng.integers(1, vocab, (batch, answer))
    return _padded(prompts, answers, np.full(batch, prompt), np.full(batch, answer), rng)


def lognormal(
    vocab: int, seed: int, *, batch: int = 64, longest: int = 256, mean: float = 0.3, sigma: float = 0.8
) -> PaddedBatch:
    """Few long sequences among many short ones, none of which shares a prompt with another.

    Prompt and answer together are lognormal with mean `mean` x `longest` before they are clipped to 8..`longest`;
    prompts are uniform from 4 to a quarter of that. The peers' rows are `longest` wide, a quarter of it for prompts; an
    answer that would need more than the other three gives the excess to its prompt.
    """
    rng = np.random.default_rng(seed + 1)
    location = np.log(mean * longest) - sigma**2 / 2
    lengths = np.clip(np.rint(rng.lognormal(location, sigma, batch)), 8, longest).astype(np.int64)
    prompt, answer = longest // 4, longest - longest // 4
    num_prompt = rng.integers(4, np.maximum(lengths // 4, 4) + 1)
    num_prompt = np.maximum(num_prompt, lengths - answer)
    prompts, answers = rng.integers(1, vocab, (batch, prompt)), rng.integers(1, vocab, (batch, answer))
    return _padded(prompts, answers, num_prompt, lengths - num_prompt, rng)


def prefix(vocab: int, seed: int, *, groups: int = 2, prompt: int = 512, answer: int = 64) -> PaddedBatch:
    """Full rows; the answers of a group have one long prompt."""
    rng = np.random.default_rng(seed + 1)
    batch = groups * GROUP
    prompts = np.repeat(rng.integers(1, vocab, (groups, prompt)), GROUP, axis=0)
    answers = rng.integers(1, vocab, (batch, answer))
    return _padded(prompts, answers, np.full(batch, prompt), np.full(batch, answer), rng)


def _padded(
    prompts: np.ndarray, answers: np.ndarray, num_prompt: np.ndarray, num_answer: np.ndarray, rng: np.random.Generator
) -> PaddedBatch:
    """Cuts full rows to these lengths, and draws what belongs to a batch besides tokens."""
    (batch, prompt), answer = prompts.shape, answers.shape[1]
    prompt_mask = (np.arange(prompt) >= prompt - num_prompt[:, None]).astype(np.int32)
    answer_mask = (np.arange(answer) < num_answer[:, None]).astype(np.int32)
    rewards = rng.standard_normal((batch // GROUP, GROUP))
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    advantages = centred / (rewards.std(axis=1, keepdims=True) + 1e-4)
    noise = NOISE * rng.standard_normal((2, batch, answer)).astype(np.float32)
    return PaddedBatch(
        prompt_ids=(prompts * prompt_mask).astype(np.int32),
        prompt_mask=prompt_mask,
        completion_ids=(answers * answer_mask).astype(np.int32),
        completion_mask=answer_mask,
        advantages=advantages.reshape(-1).astype(np.float32),
        old_noise=noise[0],
        ref_noise=noise[1],
    )


@dataclass(frozen=True)
class Expected:
    """What the first step must report, whatever the model says: log-ratios under the start weights are the noise.

    Attributes:
      kl_of_tokens: mean over all tokens of answers, which the peers report.
      kl_of_answers: mean over answers of their means, which is in the loss.
    """

    loss: float
    kl_of_tokens: float
    kl_of_answers: float


def expected(batch: PaddedBatch) -> Expected:
    """GRPO (arXiv 2402.03300, equation 3) with the estimator k3 of the KL, in float64."""
    mask = batch.completion_mask.astype(np.float64)
    log_ratio, to_reference = -batch.old_noise.astype(np.float64), batch.ref_noise.astype(np.float64)
    advantages = batch.advantages.astype(np.float64)[:, None]
    ratio = np.exp(log_ratio)
    gain = np.minimum(ratio * advantages, np.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages)
    kl = np.expm1(to_reference) - to_reference

    def mean_of_means(values: np.ndarray) -> float:
        return float(np.mean((values * mask).sum(axis=1) / mask.sum(axis=1)))

    return Expected(
        loss=mean_of_means(KL_COEFFICIENT * kl - gain),
        kl_of_tokens=float((kl * mask).sum() / mask.sum()),
        kl_of_answers=mean_of_means(kl),
    )


def weights(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Hugging Face name -> fp32 array: matrices normal(0, 0.02) in the order in which the peers' scripts draw them."""
    rng = np.random.default_rng(seed)
    table = {row.path: row for row in parameters(config)}
    drawn: dict[str, np.ndarray] = {}

    def draw(path: str, layer: int | None = None) -> None:
        row = table[path]
        normal = rng.standard_normal(row.shape) * _MATRIX_STDDEV
        drawn[row.hf_name.format(layer=layer)] = normal.astype(np.float32)

    draw("embed.weight")
    for layer in range(config.num_layers):
        for name in ("q", "k", "v", "o"):
            draw(f"layers.attention.{name}_proj.weight", layer)
        for name in ("gate", "up", "down"):
            draw(f"layers.mlp.{name}_proj.weight", layer)
    if not config.tie_word_embeddings:
        draw("lm_head.weight")
    return drawn


def parameter_tree(config: ModelConfig, drawn: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our paths -> arrays, layers stacked; whatever was not drawn is a norm, hence ones."""
    tree = {}
    for row in parameters(config):
        ones = np.ones(row.shape, np.float32)
        tree[row.path] = (
            np.stack([drawn.get(row.hf_name.format(layer=i), ones) for i in range(config.num_layers)])
            if row.stacked
            else drawn.get(row.hf_name, ones)
        )
    return tree

"""Weir's learner on the first batch of a peer: prints its loss and gradient norm as one JSON line.

python -m tools.bench.end_to_end.agreement BATCH.npz --config NAME [--set SECTION.KEY=VALUE ...]

The batch is as a peer made it, advantages included: prompts padded at the left, answers at the right. Behaviour and
reference log-probs are those of the start weights, as they are in a first step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.load import load_config
from configs.schema import Config
from learner_jax.batches import Batch, Lengths
from learner_jax.contracts import read_model_config
from learner_jax.losses import loss_weights
from learner_jax.models import load_parameters
from learner_jax.training import Engine, reinforcement
from tools.bench import BenchmarkError

#: Of the loss, absolute: that of a first step is the sum of terms near 1 that cancel. Of the gradient norm, relative.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 2e-3


@dataclass(frozen=True)
class FirstStep:
    """What a side computed in its first step; the norm is before clipping."""

    loss: float
    grad_norm: float


def require_agreement(peer: str, got: FirstStep, weir: FirstStep) -> None:
    """Raises: BenchmarkError: a peer's first step is not what Weir's learner computes for the same batch."""
    wrong = []
    if not abs(got.loss - weir.loss) <= LOSS_TOLERANCE:
        wrong.append(f"loss {got.loss:.8g}, Weir {weir.loss:.8g}; allowed is a difference of {LOSS_TOLERANCE:g}")
    if not abs(got.grad_norm - weir.grad_norm) <= NORM_TOLERANCE * weir.grad_norm:
        wrong.append(
            f"gradient norm {got.grad_norm:.8g}, Weir {weir.grad_norm:.8g}; allowed is {NORM_TOLERANCE:g} of it"
        )
    if wrong:
        raise BenchmarkError(f"{peer}'s first step is not Weir's for the same batch: {'; '.join(wrong)}")


def rows(batch: Mapping[str, np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [B, width] without padding inside, whether each is of an answer [B, width], and lengths [B]."""
    prompts, answers = batch["prompt_mask"].sum(axis=1), batch["completion_mask"].sum(axis=1)
    lengths = (prompts + answers).astype(np.int64)
    tokens = np.zeros((len(lengths), width), np.int32)
    sampled = np.zeros((len(lengths), width), bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[row, :prompt] = batch["prompt_ids"][row, batch["prompt_ids"].shape[1] - prompt :]
        tokens[row, prompt : prompt + answer] = batch["completion_ids"][row, :answer]
        sampled[row, prompt : prompt + answer] = True
    return tokens, sampled, lengths


def first_step(batch: Mapping[str, np.ndarray], config: Config) -> FirstStep:
    """Takes one optimizer step from the start model on a peer's batch."""
    model = Path(config.model.path)
    model_config = read_model_config(model, family=config.model.family)
    engine = Engine(
        config.learner,
        model_config,
        objective=reinforcement(config.learner.loss),
        temperature=config.rollout.temperature,
        devices=jax.devices()[:1],
    )
    tokens, sampled, num_tokens = rows(batch, config.learner.sequence_length)
    lengths = Lengths(num_tokens, np.arange(len(num_tokens)), np.zeros_like(num_tokens))
    state = engine.init_state(load_parameters(model, model_config), seed=config.run.seed)
    start = engine.statistics.logprobs(state.params, tokens, sampled, lengths)
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "weights": loss_weights(sampled.astype(np.float32), reduction=config.learner.loss.reduction),
        "advantages": (batch["advantages"][:, None] * sampled).astype(np.float32),
        "behavior_logprobs": (start * sampled).astype(np.float32),
        "reference_logprobs": (start * sampled).astype(np.float32) if config.learner.loss.kl.coefficient else None,
        "policy_version": np.where(sampled, 0, -1).astype(np.int32),
        "lengths": lengths.tokens,
        "groups": lengths.groups,
        "shared": lengths.shared,
    }
    _, metrics = engine.step(state, Batch(**arrays), current_version=0)
    return FirstStep(float(metrics["loss"]), float(metrics["grad_norm"]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batch", type=Path)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(argv)
    with np.load(given.batch) as file:
        batch = {name: file[name] for name in file.files}
    found = first_step(batch, load_config(given.config, given.overrides))
    print(json.dumps({"loss": found.loss, "grad_norm": found.grad_norm}))


if __name__ == "__main__":
    main(sys.argv[1:])

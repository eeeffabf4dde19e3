"""Weir's learner on the first batches of a peer: prints loss and gradient norm of each step as one JSON line.

python -m tools.bench.end_to_end.agreement BATCH.npz [BATCH.npz ...] --config NAME [--set SECTION.KEY=VALUE ...]

Batches are as a peer made them, advantages included: prompts padded at the left, answers at the right. Reference
log-probs are those of the start weights. Behaviour log-probs are those of the weights before the step, as in a
synchronous trainer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from learner_jax.training import Engine, Params, reinforcement
from tools.bench import BenchmarkError
from tools.command_line import CommandParser

#: Of the loss, absolute: that of a first step is the sum of terms near 1 that cancel. Of the gradient norm, relative.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 2e-3


@dataclass(frozen=True)
class FirstStep:
    """What a side computed in one of its first steps; the norm is before clipping."""

    loss: float
    grad_norm: float


def require_agreement(peer: str, got: FirstStep, weir: FirstStep) -> None:
    """Of the very first step, before weights of two sides drift apart by rounding.

    Raises:
      BenchmarkError: a peer's first step is not what Weir's learner computes for the same batch.
    """
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


def first_steps(batches: Iterable[Mapping[str, np.ndarray]], config: Config) -> list[FirstStep]:
    """Takes an optimizer step on each batch of a peer, one after the other, from the start model."""
    model = Path(config.model.path)
    model_config = read_model_config(model, family=config.model.family)
    engine = Engine(
        config.learner,
        model_config,
        objective=reinforcement(config.learner.loss),
        temperature=config.rollout.temperature,
        devices=jax.devices()[:1],
    )
    start = load_parameters(model, model_config)
    state, reference = engine.init_state(start, seed=config.run.seed), engine.placed(start)
    found = []
    for batch in batches:
        state, metrics = engine.step(
            state, _on_policy(engine, state.params, reference, batch, config), current_version=0
        )
        found.append(FirstStep(float(metrics["loss"]), float(metrics["grad_norm"])))
    return found


def _on_policy(
    engine: Engine, policy: Params, reference: Params, batch: Mapping[str, np.ndarray], config: Config
) -> Batch:
    """A peer's batch, as answers of this policy."""
    tokens, sampled, num_tokens = rows(batch, config.learner.sequence_length)
    lengths = Lengths(num_tokens, np.arange(len(num_tokens)), np.zeros_like(num_tokens))
    behavior = engine.statistics.logprobs(policy, tokens, sampled, lengths) * sampled
    anchor = engine.statistics.logprobs(reference, tokens, sampled, lengths) * sampled
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "weights": loss_weights(sampled.astype(np.float32), reduction=config.learner.loss.reduction),
        "advantages": (batch["advantages"][:, None] * sampled).astype(np.float32),
        "behavior_logprobs": behavior.astype(np.float32),
        "reference_logprobs": anchor.astype(np.float32) if config.learner.loss.kl.coefficient else None,
        "policy_version": np.where(sampled, 0, -1).astype(np.int32),
        "lengths": lengths.tokens,
        "groups": lengths.groups,
        "shared": lengths.shared,
    }
    return Batch(**arrays)


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batches", type=Path, nargs="+", metavar="BATCH")
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(argv)
    found = first_steps(map(_loaded, given.batches), load_config(given.config, given.overrides))
    print(json.dumps([asdict(step) for step in found]))


def _loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


if __name__ == "__main__":
    main(sys.argv[1:])

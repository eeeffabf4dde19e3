"""What every side works on: one configuration of Weir, from which a peer gets the same model, problems and settings.

Not covered: losses, optimizers and dialogs that the peers lack. They are refused, since the sides would do different
work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import write_whole
from rewards.contracts import Split
from tools.assembly import build_encoder, build_task
from tools.bench import BenchmarkError

#: Prompts beyond those of the steps asked for: a side samples ahead, or ends a step late.
_SPARE_STEPS = 4
_GIVEN_UP = 10_000


@dataclass(frozen=True)
class Workload:
    """A shipped configuration, and what is changed in it.

    Attributes:
      config: name of the shipped configuration.
      overrides: `section.key=value` strings that make it this workload.
      peer_rows: answers that a peer takes at once through the model when it trains; the rest is accumulated.
      steps, skip: of a run, and its first ones that are left out, unless the user says otherwise.
      makes_model: whether the configuration has a model made, which a supervised start then teaches.
    """

    config: str
    overrides: tuple[str, ...]
    peer_rows: int
    steps: int
    skip: int
    makes_model: bool = False


_CHAT = (
    "run.name=chat",
    "task.provider=tools.bench.end_to_end.chat_task:ChatTask",
    "task.options={}",
    "task.chat=true",
    "rollout.max_prompt_tokens=160",
    "rollout.max_tokens=128",
    "rollout.concurrent_groups=8",
    "learner.sequence_length=288",
    "learner.row_tokens=[768, 1536]",
    "learner.microbatch_rows=1",
    "learner.optimizer.learning_rate=1e-5",
    "learner.optimizer.warmup_steps=2",
    "serving.max_model_len=320",
    "evaluation.num_problems=32",
    "evaluation.temperature=0",
)
WORKLOADS: Mapping[str, Workload] = {
    "demo": Workload(
        "demo", ("model.create=none", "warm_start=none"), peer_rows=512, steps=60, skip=10, makes_model=True
    ),
    "stories": Workload("stories", (), peer_rows=64, steps=14, skip=3),
    "chat": Workload("stories", _CHAT, peer_rows=8, steps=6, skip=2),
}


def run_overrides(workload: Workload, model: Path, more: Sequence[str]) -> list[str]:
    """The `--set` values of a run of this workload from a model folder; what the user gave comes last."""
    return [*workload.overrides, f"model.path={model}", *more]


def resolved(workload: Workload, overrides: Sequence[str]) -> Config:
    """The configuration that all sides follow.

    Raises:
      ConfigError: the overrides don't give a valid one.
      ModelConfigError, TokenizerError: the model folder can't be used.
      BenchmarkError: the peers can't do what it asks for.
    """
    config = load_config(workload.config, list(overrides))
    require_comparable(config)
    build_encoder(config, Path(config.model.path))
    return config


def require_comparable(config: Config) -> None:
    """Refuses settings that a peer has no counterpart of.

    Raises:
      BenchmarkError: names each such setting, and the value that all sides know.
    """
    loss = config.learner.loss
    wanted: list[tuple[str, object, object]] = [
        ("task.turns", config.task.turns, 1),
        ("learner.minibatches", config.learner.minibatches, 1),
        ("learner.optimizer.moments", config.learner.optimizer.moments, "float32"),
        ("learner.loss.advantage.estimator", loss.advantage.estimator, "grpo"),
        ("learner.loss.policy.objective", loss.policy.objective, "ppo"),
        ("learner.loss.policy.dual_clip", loss.policy.dual_clip, None),
        ("learner.loss.reduction", loss.reduction, "sequence_mean"),
        ("learner.loss.kl.use", loss.kl.use, "loss"),
        ("learner.loss.kl.estimator", loss.kl.estimator, "k3"),
        ("learner.loss.kl.importance_weighted", loss.kl.importance_weighted, False),
        ("learner.loss.kl.target", loss.kl.target, None),
        ("learner.loss.kl.reference", loss.kl.reference, ""),
        ("learner.loss.kl.reset_every", loss.kl.reset_every, 0),
        ("learner.loss.groups.zero_variance", loss.groups.zero_variance, "keep"),
        ("learner.loss.groups.overlong", loss.groups.overlong, "keep"),
        ("learner.loss.entropy_coefficient", loss.entropy_coefficient, 0.0),
        ("learner.loss.effective_sample_exponent", loss.effective_sample_exponent, 0.0),
    ]
    wrong = [f"{name} is {got!r}, expected {want!r}" for name, got, want in wanted if got != want]
    if loss.policy.clip_low != loss.policy.clip_high:
        wrong.append("learner.loss.policy.clip_low and clip_high differ, expected the same")
    if wrong:
        raise BenchmarkError(f"the sides would do different work: {'; '.join(wrong)}")


@dataclass(frozen=True)
class Prompts:
    """Problems of a split that fit: index in it, question, and the token ids that the model is prompted with."""

    indices: list[int]
    questions: list[str]
    tokens: list[list[int]]


def first_batches(folder: Path, number: int) -> list[Path]:
    """Where a peer keeps the batches of its first steps, in order."""
    return [folder / f"batch_{step}.npz" for step in range(1, number + 1)]


def peer_job(
    config: Config, *, folder: Path, steps: int, evaluate_every: int, threads: int, rows: int, first_steps: int = 1
) -> Path:
    """Writes all that a peer needs to know of the work; returns the file. Consumer: `peer_common.read_job`.

    Args:
      first_steps: whose batches TRL keeps; Tunix keeps that of the first one.
    """
    encoder, _ = build_encoder(config, Path(config.model.path))
    optimizer, loss = config.learner.optimizer, config.learner.loss
    job: dict[str, Any] = {
        "model": config.model.path,
        "events": str(folder / "events.jsonl"),
        "first_batches": [str(path) for path in first_batches(folder, first_steps)],
        "task": config.task.model_dump(mode="json"),
        "seed": config.run.seed,
        "eos_ids": list(encoder.tokenizer.eos_ids),
        "pad_id": encoder.tokenizer.pad_id,
        "train": _fitting(config, "train", (steps + _SPARE_STEPS) * config.learner.groups_per_step),
        "heldout": _fitting(config, "heldout", config.evaluation.num_problems) if evaluate_every else None,
        "steps": steps,
        "evaluate_every": evaluate_every,
        "threads": threads,
        "rows": min(rows, config.learner.groups_per_step * config.rollout.group_size),
        "groups_per_step": config.learner.groups_per_step,
        "group_size": config.rollout.group_size,
        "max_prompt_tokens": config.rollout.max_prompt_tokens,
        "max_tokens": config.rollout.max_tokens,
        "temperature": config.rollout.temperature,
        "evaluation_tokens": config.evaluation.max_tokens or config.rollout.max_tokens,
        "evaluation_temperature": config.evaluation.temperature,
        "optimizer": optimizer.model_dump(mode="json"),
        "kl": loss.kl.coefficient,
        "clip": loss.policy.clip_high,
    }
    path = folder / "job.json"
    write_whole(path, json.dumps(job))
    return path


def _fitting(config: Config, split: Split, number: int) -> dict[str, Any]:
    """The first problems of a split whose prompts are short enough; held-out ones that are longer are left out."""
    encoder, _ = build_encoder(config, Path(config.model.path))
    task = build_task(config)
    found = Prompts([], [], [])
    for index in range(number if split == "heldout" else number + _GIVEN_UP):
        problem = task.problem(split, index)
        tokens = encoder.encode(problem)
        if tokens is not None:
            found.indices.append(index)
            found.questions.append(problem.question)
            found.tokens.append(tokens)
        if len(found.indices) == number:
            break
    task.close()
    if not found.indices:
        raise BenchmarkError(
            f"no prompt of {config.task.provider} has at most {config.rollout.max_prompt_tokens} tokens: raise "
            f"rollout.max_prompt_tokens"
        )
    return asdict(found)

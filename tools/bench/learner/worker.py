"""Weir's side of the learner benchmark: GRPO steps on one batch in this process; prints one JSON line.

python -m tools.bench.learner.worker --batch batch.npz [--core N] [--steps 5] [--layers 4 ...]

A step is `Engine.step`, packing and transfer included; the figures are those that the peers' scripts print.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from learner_jax.batches import Batch, Lengths
from learner_jax.losses import loss_weights
from learner_jax.settings import KLSettings, LearnerSettings, LossSettings, OptimizerSettings, PolicySettings
from learner_jax.training import Engine, objective
from tools.bench.learner.cases import CLIP, GROUP, KL_COEFFICIENT, PaddedBatch, Shape, parameter_tree, weights
from tools.command_line import CommandParser


@dataclass(frozen=True)
class Rows:
    """The sequences of a batch without the padding between prompt and answer; right-padded to T.

    Attributes:
      answers: 1 on tokens of answers.
      old_noise, ref_noise: those of the padded batch, each at its token.
      shared: leading tokens that a sequence has in common with its whole group.
    """

    tokens: np.ndarray
    answers: np.ndarray
    old_noise: np.ndarray
    ref_noise: np.ndarray
    lengths: np.ndarray
    shared: np.ndarray

    @classmethod
    def of(cls, batch: PaddedBatch) -> Rows:
        num_prompt, num_answer = batch.prompt_mask.sum(axis=1), batch.completion_mask.sum(axis=1)
        lengths = (num_prompt + num_answer).astype(np.int64)
        shape = (len(lengths), int(lengths.max()))
        tokens = np.zeros(shape, np.int32)
        answers, old_noise, ref_noise = (np.zeros(shape, np.float32) for _ in range(3))
        for row, (prompt, answer) in enumerate(zip(num_prompt, num_answer, strict=True)):
            tokens[row, :prompt] = batch.prompt_ids[row, batch.prompt_ids.shape[1] - prompt :]
            here = slice(prompt, prompt + answer)
            tokens[row, here] = batch.completion_ids[row, :answer]
            answers[row, here] = 1
            old_noise[row, here] = batch.old_noise[row, :answer]
            ref_noise[row, here] = batch.ref_noise[row, :answer]
        return cls(tokens, answers, old_noise, ref_noise, lengths, _shared(tokens, num_prompt))

    def row_lengths(self) -> tuple[int, ...]:
        """Of packed rows: the longest sequence, and the longest group behind its prompt where groups share one."""
        own = (self.lengths - self.shared).reshape(-1, GROUP).sum(axis=1)
        groups = own + self.shared[::GROUP]
        longest = {int(self.lengths.max())}
        return tuple(sorted(longest | ({int(groups.max())} if self.shared.any() else set())))


def _shared(tokens: np.ndarray, num_prompt: np.ndarray) -> np.ndarray:
    shared = np.zeros(len(tokens), np.int64)
    for start in range(0, len(tokens), GROUP):
        group = slice(start, start + GROUP)
        prompts = tokens[group, : num_prompt[group].min()]
        differs = (prompts != prompts[0]).any(axis=0)
        shared[group] = int(np.argmax(differs)) if differs.any() else prompts.shape[1]
    return shared


@dataclass(frozen=True)
class Prepared:
    """What to time: `step` makes one optimizer step and returns its metrics, computed.

    Attributes:
      num_slots: token slots that a step computes.
      shares_prompts: whether it computes a group's prompt once.
    """

    step: Callable[[], Mapping[str, Any]]
    num_slots: int
    shares_prompts: bool


def prepare(rows: Rows, advantages: np.ndarray, shape: Shape, *, seed: int) -> Prepared:
    """Builds engine, state and batch; the whole batch is one microbatch, as it is for the peers.

    All that knows the engine's interface is here.
    """
    lengths = Lengths(rows.lengths, np.arange(len(rows.lengths)) // GROUP, rows.shared)
    settings = LearnerSettings(
        steps=1,
        groups_per_step=len(rows.lengths) // GROUP,
        sequence_length=int(rows.lengths.max()),
        row_tokens=rows.row_lengths(),
        microbatch_rows=1,
        optimizer=OptimizerSettings(learning_rate=1e-5, weight_decay=0.01, beta2=0.999, max_grad_norm=1.0),
        loss=LossSettings(
            kl=KLSettings(coefficient=KL_COEFFICIENT), policy=PolicySettings(clip_low=CLIP, clip_high=CLIP)
        ),
    )
    config = shape.config()

    def engine_of(settings: LearnerSettings) -> Engine:
        loss = objective.reinforcement(settings.loss)
        return Engine(settings, config, objective=loss, temperature=1.0, devices=jax.devices()[:1])

    plan = engine_of(settings).packing(lengths, rows.tokens.shape[1]).plan()
    chosen = {"microbatch_rows": plan.num_rows, "row_tokens": (plan.row_tokens,)}
    engine = engine_of(settings.model_copy(update=chosen))
    flat = parameter_tree(config, weights(config, seed))
    state = engine.init_state(unflatten_dict(flat, sep="."), seed=0)
    base = engine.statistics.logprobs(state.params, rows.tokens, rows.answers > 0, lengths)
    arrays: dict[str, Any] = {
        "tokens": rows.tokens,
        "weights": loss_weights(rows.answers, reduction="sequence_mean"),
        "advantages": (advantages[:, None] * rows.answers).astype(np.float32),
        "behavior_logprobs": ((base + rows.old_noise) * rows.answers).astype(np.float32),
        "reference_logprobs": ((base + rows.ref_noise) * rows.answers).astype(np.float32),
        "policy_version": np.where(rows.answers > 0, 0, -1).astype(np.int32),
        "lengths": lengths.tokens,
        "groups": lengths.groups,
        "shared": lengths.shared,
    }
    batch = Batch(**arrays)

    def step() -> Mapping[str, Any]:
        nonlocal state
        state, metrics = engine.step(state, batch, current_version=1)
        jax.block_until_ready((state, metrics))
        return metrics

    return Prepared(step, plan.num_rows * plan.row_tokens, plan.shares_prompts)


def peak_rss_mb() -> float:
    """Most resident memory that this program had, MiB; where the system says so, without what it was forked from.

    Read from /proc where there is one: psutil has no such peak for Linux.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks_kb = [float(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    if peaks_kb:
        return peaks_kb[0] / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(step: Callable[[], Mapping[str, Any]], *, warmup: int, steps: int, num_tokens: int) -> dict[str, float]:
    """Times steps after the warm-up; the figures that the peers' scripts print, by their names."""
    wall, cpu, metrics = [], [], []
    for _ in range(warmup + steps):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        metrics.append(step())
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    step_s = statistics.median(wall[warmup:])
    first = {name: float(metrics[0][name]) for name in ("loss", "kl", "grad_norm")}
    return first | {
        "step_ms": 1e3 * step_s,
        "step_cpu_ms": 1e3 * statistics.median(cpu[warmup:]),
        "tokens_per_s": num_tokens / step_s,
        "compile_s": wall[0],
        "maxrss_mb": peak_rss_mb(),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=Path, required=True)
    parser.add_argument("--core", type=int, help="pin the process to this core")
    numbers = {f.name: f.default for f in fields(Shape)[:-1]} | {"seed": 0, "warmup": 2, "steps": 5}
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})  # before JAX counts cores
    shape = Shape(**{f.name: getattr(given, f.name) for f in fields(Shape)})
    batch = PaddedBatch.read(given.batch)
    prepared = prepare(Rows.of(batch), batch.advantages, shape, seed=given.seed)
    figures = measure(prepared.step, warmup=given.warmup, steps=given.steps, num_tokens=batch.num_tokens)
    packing = {"num_slots": prepared.num_slots, "shares_prompts": prepared.shares_prompts}
    print(json.dumps({"side": "weir", **figures, **packing, "shape": asdict(shape)}))


if __name__ == "__main__":
    main()

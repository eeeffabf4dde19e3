"""How much of a GPU a step of Weir uses: model FLOPs of real tokens over time, against the matmul peak of the same GPU.

GRPO on rows of 8192 tokens packed with sequences of lognormal lengths, bf16 compute, full remat, on all GPUs that JAX
sees. Recomputation, padding and masked attention do not count as work (`learner_jax.models.flops.train_step_flops`).

Not covered: the peers, prompts shared within groups, and any quality of the update: weights are random.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from learner_jax.batches import Batch
from learner_jax.contracts import ModelConfig
from learner_jax.losses import loss_weights
from learner_jax.models import flops, init_parameters
from learner_jax.settings import LearnerSettings, LossSettings
from learner_jax.training import Engine, objective
from tools.bench import BenchmarkError
from tools.bench.learner.cases import GROUP, MODELS
from tools.bench.timing import console, progress, this_hardware, write_json

ROW_TOKENS = 8192
_WARMUP = 2


@dataclass(frozen=True)
class Utilisation:
    """One model's figures; `peak_flops` is of all devices together, FLOP/s.

    Attributes:
      num_tokens, num_scored: real tokens of a step, and those of answers.
      mfu: model FLOPs over time and peak.
    """

    model: str
    num_devices: int
    num_tokens: int
    num_scored: int
    num_slots: int
    step_s: float
    tokens_per_s: float
    model_flops: float
    peak_flops: float
    mfu: float


def utilisation(model_flops: float, step_s: float, peak_flops: float) -> float:
    """Share of the peak that did the model's work."""
    return model_flops / step_s / peak_flops


def lengths_of(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, prompt lengths) of so many sequences that they nearly fill the rows; lognormal, mean 0.2 of a row."""
    rng = np.random.default_rng(seed)
    mean, sigma = 0.2 * ROW_TOKENS, 0.8
    groups = max(1, round(0.9 * rows * ROW_TOKENS / mean / GROUP))
    location = np.log(mean) - sigma**2 / 2
    lengths = np.clip(np.rint(rng.lognormal(location, sigma, groups * GROUP)), 64, ROW_TOKENS).astype(np.int64)
    return lengths, np.maximum(lengths // 8, 1)


def run(model: str, *, rows: int, steps: int, json_file: Path | None) -> None:
    """Measures, prints, and writes JSON where asked to.

    Raises:
      BenchmarkError: JAX sees no GPU.
    """
    if jax.default_backend() != "gpu":
        raise BenchmarkError(
            f"--device gpu needs an NVIDIA GPU that JAX sees, got platform {jax.default_backend()}: install weir[gpu] "
            f"on a machine that has one, or leave --device out"
        )
    hardware = this_hardware()
    out = console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with progress() as bar:
        bar.add_task(f"{model}: compiling and measuring", total=None)
        found = measure(model, MODELS[model].config(), rows=rows, steps=steps)
    out.print(
        f"{model}: {found.num_tokens} real tokens a step ({found.num_scored} scored, {found.num_slots} slots), "
        f"{found.step_s:.2f} s, {found.tokens_per_s:.0f} real tokens/s, {found.model_flops / found.step_s / 1e12:.0f} "
        f"TFLOP/s of model work = {found.mfu:.1%} of the bf16 matmul peak measured here, "
        f"{found.peak_flops / 1e12:.0f} TFLOP/s on {found.num_devices} device(s)",
        highlight=False,
        soft_wrap=True,
    )
    if json_file is not None:
        settings = {"model": model, "rows": rows, "row_tokens": ROW_TOKENS, "steps": steps, "dtype": "bfloat16"}
        write_json(json_file, "learner", hardware, settings, asdict(found))
        out.print(f"wrote {json_file}", highlight=False)


def measure(model: str, config: ModelConfig, *, rows: int, steps: int) -> Utilisation:
    """All that knows the engine's interface is here and in `_batch`."""
    settings = LearnerSettings(
        steps=1,
        groups_per_step=rows,
        sequence_length=ROW_TOKENS,
        microbatch_rows=len(jax.devices()),
        compute_dtype="bfloat16",
        remat="full",
        loss=LossSettings(),
    )
    engine = Engine(settings, config, objective=objective.reinforcement(settings.loss), temperature=1.0)
    peak = len(jax.devices()) * flops.matmul_peak(jax.devices()[0], "bfloat16")
    initial = jax.jit(init_parameters, static_argnums=0, out_shardings=engine.parameter_shardings)
    state = engine.init_state(initial(config, jax.random.key(0)), seed=0)
    batch = _batch(rows, config.vocab_size)
    packed = engine.pack(batch)
    times = []
    for _ in range(_WARMUP + steps):
        started = time.perf_counter()
        state, metrics = engine.step(state, batch, current_version=1)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - started)
    step_s = statistics.median(times[_WARMUP:])
    num_tokens, num_scored = int(np.asarray(batch.lengths).sum()), int(np.count_nonzero(batch.weights))
    return Utilisation(
        model=model,
        num_devices=len(jax.devices()),
        num_tokens=num_tokens,
        num_scored=num_scored,
        num_slots=packed.plan.num_rows * packed.plan.row_tokens,
        step_s=step_s,
        tokens_per_s=num_tokens / step_s,
        model_flops=packed.model_flops,
        peak_flops=peak,
        mfu=utilisation(packed.model_flops, step_s, peak),
    )


def _batch(rows: int, vocab: int) -> Batch:
    rng = np.random.default_rng(0)
    lengths, prompts = lengths_of(rows, seed=0)
    slots = np.arange(int(lengths.max()))
    answers = ((slots >= prompts[:, None]) & (slots < lengths[:, None])).astype(np.float32)
    tokens = rng.integers(1, vocab, answers.shape) * (slots < lengths[:, None])
    arrays: dict[str, Any] = {
        "tokens": tokens.astype(np.int32),
        "weights": loss_weights(answers, reduction="sequence_mean"),
        "advantages": (rng.standard_normal((len(lengths), 1)) * answers).astype(np.float32),
        # Close to those of random weights, so that ratios are near 1 and nothing is clipped away.
        "behavior_logprobs": (-np.log(vocab) * answers).astype(np.float32),
        "policy_version": np.where(answers > 0, 0, -1).astype(np.int32),
        "lengths": lengths,
        "groups": np.arange(len(lengths)) // GROUP,
        "shared": np.zeros_like(lengths),
    }
    return Batch(**arrays)

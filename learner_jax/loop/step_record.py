"""What the learner logs: the engine once, and of each step its statistics, metrics and times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from learner_jax.batches import BatchStats
from learner_jax.loop.feed import StepGroups
from learner_jax.loop.step_metrics import with_explained_variance
from learner_jax.models import flops
from learner_jax.runtime import Spans
from learner_jax.training import Engine, Mismatch

Log = Callable[..., None]

#: Set in the environment, lives, steps and saves are logged with what they consumed: for checks of a run's history.
_RECORD_HISTORY = "WEIR_RECORD_HISTORY"


def log_engine(engine: Engine, log: Log) -> float:
    """Says once what runs where, and what the device can do at most. Returns the peak of all devices, FLOP/s."""
    mesh, settings = engine.mesh, engine.settings
    device = mesh.local_devices[0]
    peak = settings.peak_tflops * 1e12 or flops.matmul_peak(device, settings.compute_dtype)
    log(
        "engine",
        platform=engine.platform,
        device=device.device_kind,
        mesh=dict(mesh.shape),
        host=engine.hosts.index,
        hosts=engine.hosts.count,
        attention=engine.attention,
        compute_dtype=settings.compute_dtype,
        row_tokens=list(settings.row_lengths),
        microbatch_rows=settings.microbatch_rows,
        peak_tflops_per_device=peak / 1e12,
    )
    return peak * mesh.size


def seconds(
    started: float, waited: float, prepared: float, trained: float, published: float, ended: float
) -> dict[str, float]:
    """The times of `step_record`, from the moments at which the parts of a step ended."""
    return {
        "wait_s": waited - started,
        "prepare_s": prepared - waited,
        "train_s": trained - waited,
        "publish_s": published - trained,
        "save_s": ended - published,
        "step_s": ended - started,
    }


def step_record(
    stats: BatchStats,
    metrics: Mapping[str, float],
    lagging: Mismatch,
    *,
    step: int,
    version: int,
    kl_coefficient: float | None,
    dropped_stale: int,
    peak_flops: float,
    **seconds: float,
) -> dict[str, Any]:
    """What is logged of a step.

    Args:
      metrics: of the step's updates together, as `step_metrics.merged` returns them.
      lagging: mismatch of the tokens that older versions sampled; that of the others is in `metrics`.
      version: that the step started from.
      kl_coefficient: that the step was made with; None without a reference.
      peak_flops: of all devices, FLOP/s.
      seconds: times of the step's parts.
    """
    shown = dict(metrics)
    current = Mismatch(shown.pop("mismatch_sum"), shown.pop("mismatch_max"), round(shown.pop("mismatch_tokens")))
    mismatch = current + lagging
    slots, real = shown.pop("slot_tokens"), shown.pop("real_tokens")
    model_flops = shown.pop("model_flops")
    return {
        "step": step,
        "version": version,
        **asdict(stats),
        **with_explained_variance(shown),
        **({} if kl_coefficient is None else {"kl_coefficient": kl_coefficient}),
        "mismatch_mean_abs_logprob": mismatch.mean,
        "mismatch_max_abs_logprob": mismatch.maximum if mismatch.num_tokens else None,
        "mismatch_tokens": mismatch.num_tokens,
        "dropped_stale": dropped_stale,
        "real_token_share": real / slots,
        "mfu": model_flops / (metrics["compute_s"] * peak_flops),
        **seconds,
    }


def log_history(log: Log, event: str, *, step: int, taken: StepGroups | None = None, **fields: Any) -> None:
    """Logs what a check of the history needs, if asked to: two learners may live at the same time there."""
    if _RECORD_HISTORY not in os.environ:
        return
    if taken is not None:
        oldest = [min(trajectory.oldest_version for trajectory in group) for group in taken.groups]
        fields |= {"groups": taken.group_ids, "oldest": oldest}
    log(event, step=step, life=os.getpid(), **fields)


def log_step(
    log: Log, spans: Spans, record: Mapping[str, Any], group_ids: Sequence[str], *, published_version: int
) -> None:
    """Logs a step that has just ended, and tells the learner's part of the ways of the groups it was trained on."""
    log("step", **record)
    at = time.time() - record["step_s"]
    for name, part in (("lease", "wait_s"), ("train", "train_s"), ("publish", "publish_s")):
        more = {"published_version": published_version} if name == "publish" else {}
        spans.past(group_ids, name, at, at + record[part], step=record["step"], version=record["version"], **more)
        at += record[part]

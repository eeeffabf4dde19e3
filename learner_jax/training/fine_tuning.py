"""Supervised training for a number of steps, on answers or on pairs of them; a restart goes on with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from learner_jax.batches import Batch, preference_batch, supervised_batch
from learner_jax.runtime import WeirError
from learner_jax.settings import SupervisedSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.objective import Objective
from learner_jax.training.train_step import Params, TrainState

#: Examples, or pairs of them, by step.
Steps = Iterator[Sequence[Any]]


class FineTuningError(WeirError, RuntimeError):
    """Supervised training can't go on."""

    can_heal = False


def fine_tuning_objective(settings: SupervisedSettings) -> Objective:
    """The loss that the settings ask for."""
    match settings.loss:
        case "cross_entropy":
            return objective.supervised
        case "dpo":
            return objective.direct_preference(settings.beta)


def fine_tune(
    engine: Engine,
    state: TrainState,
    settings: SupervisedSettings,
    *,
    start: Params,
    examples: Steps,
    first_step: int,
    save: Callable[[TrainState, int], None],
    log: Callable[..., None],
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, int]:
    """Trains from step `first_step` up to `settings.steps`, or until a stop is asked for.

    Args:
      start: parameters before the first step of all: the reference of DPO.
      examples: of step `first_step` and all later ones.
      save: called with the state and the number of steps that it holds, every `settings.save_every` steps and at the
        end; the state may be donated once it returns.

    Returns:
      The state, and the number of steps that it holds.

    Raises:
      FineTuningError: the loss is not finite.
      BatchError: an example is longer than `learner.sequence_length`, or has no answer.
    """
    length = engine.settings.sequence_length

    def build(chosen: Sequence[Any]) -> Batch:
        if settings.loss == "cross_entropy":
            return supervised_batch(chosen, sequence_length=length)
        return preference_batch(
            chosen, sequence_length=length, reference=lambda rows: engine.statistics.logprobs(start, rows.tokens)
        )

    saved = step = first_step
    for batch in _ahead(build, examples, settings.steps - first_step):
        if should_stop():
            break
        started = time.monotonic()
        state, metrics = engine.step(state, batch, current_version=-1)
        step += 1
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            raise FineTuningError(
                f"the supervised loss is {loss} at step {step}: lower supervised.learning_rate, or look at the model's "
                f"weights"
            )
        told = {name: float(metrics[name]) for name in ("preference_accuracy", "margin") if name in metrics}
        log("warm_start", step=step, loss=loss, accuracy=None, step_s=time.monotonic() - started, **told)
        if step - saved >= settings.save_every:
            save(state, step)
            saved = step
    if step > saved:
        save(state, step)
    return state, step


def _ahead(build: Callable[[Sequence[Any]], Batch], examples: Steps, count: int) -> Iterator[Batch]:
    """`count` batches, each built while the step before it runs."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(build, next(examples)) if count > 0 else None
        for left in reversed(range(count)):
            assert pending is not None
            batch = pending.result()
            pending = pool.submit(build, next(examples)) if left else None
            yield batch

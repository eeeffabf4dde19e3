"""A supervised start: cross-entropy on the task's own answers until a measured skill is reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from learner_jax.batches import Batch, Example, batch_lengths, supervised_batch
from learner_jax.runtime import WeirError
from learner_jax.settings import WarmStartSettings
from learner_jax.training.engine import Engine
from learner_jax.training.train_step import TrainState

Log = Callable[..., None]


class WarmStartError(WeirError, RuntimeError):
    """The supervised start ended without the skill that was asked for."""

    can_heal = False


def warm_start(
    engine: Engine,
    state: TrainState,
    settings: WarmStartSettings,
    *,
    train_example: Callable[[int], Example],
    validation_example: Callable[[int], Example],
    log: Log,
) -> tuple[TrainState, float]:
    """Trains until greedy answers to `num_validation` problems reach `target_accuracy`.

    Greedy skill is measured without sampling: an answer is right if every target token is the most likely one given
    the tokens before it, which is exactly when greedy decoding would produce it.

    Returns:
      The trained state and the validation accuracy reached.
    Raises:
      WarmStartError: `max_steps` were not enough, or the loss is not finite.
    """
    length = engine.settings.sequence_length
    validation = supervised_batch(
        [validation_example(i) for i in range(settings.num_validation)], sequence_length=length
    )
    accuracy = 0.0
    for step, batch in enumerate(_prefetch(train_example, settings, length), start=1):
        started = time.monotonic()
        state, metrics = engine.step(state, batch, current_version=-1)
        measured = None
        if step % settings.evaluate_every == 0 or step == settings.max_steps:
            _check_loss(float(metrics["loss"]), step)
            tokens, mask = np.asarray(validation.tokens), np.asarray(validation.weights) > 0
            measured = accuracy = float(
                engine.statistics.all_correct(state.params, tokens, mask, batch_lengths(validation)).mean()
            )
        if measured is not None or step == 1:
            log("warm_start", step=step, loss=float(metrics["loss"]), accuracy=measured, step_s=_elapsed(started))
        if accuracy >= settings.target_accuracy:
            return state, accuracy
    raise WarmStartError(
        f"after {settings.max_steps} supervised steps greedy accuracy is {accuracy:.2f}, expected "
        f"{settings.target_accuracy}: raise warm_start.max_steps or lower warm_start.target_accuracy"
    )


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):  # such steps change nothing: the accuracy would only stay what it is
        raise WarmStartError(
            f"the supervised loss is {loss} at step {step}: lower warm_start.learning_rate, or look at "
            f"the model's weights"
        )


def _elapsed(started: float) -> float:
    return time.monotonic() - started


def _prefetch(train_example: Callable[[int], Example], settings: WarmStartSettings, length: int) -> Iterator[Batch]:
    """Batches of consecutive examples, each built while the step before it runs."""

    def build(step: int) -> Batch:
        first = step * settings.batch_size
        examples = [train_example(index) for index in range(first, first + settings.batch_size)]
        return supervised_batch(examples, sequence_length=length)

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Any = pool.submit(build, 0)
        for step in range(settings.max_steps):
            batch = pending.result()
            if step + 1 < settings.max_steps:
                pending = pool.submit(build, step + 1)
            yield batch

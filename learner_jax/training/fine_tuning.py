"""Supervised training for a number of steps, on answers or on pairs of them; a restart goes on with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from learner_jax.batches import Batch, Sequences, preference_batch, supervised_batch, with_reference
from learner_jax.hosts import Hosts
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
    hosts: Hosts | None = None,
) -> tuple[TrainState, int]:
    """Trains from step `first_step` up to `settings.steps`, or until a stop is asked for.

    Of several hosts each reads the whole batch of a step, and computes its own share of it: consecutive examples.

    Args:
      start: parameters before the first step of all: the reference of DPO.
      examples: of step `first_step` and all later ones.
      save: called with the state and the number of steps that it holds, every `settings.save_every` steps and at the
        end; the state may be donated once it returns.
      should_stop: heard where any host is asked to stop.
      hosts: of the learner; this process alone if None.

    Returns:
      The state, and the number of steps that it holds.

    Raises:
      FineTuningError: the loss is not finite, or a batch does not divide over the hosts.
      BatchError: an example is longer than `learner.sequence_length`, or has no answer.
    """
    hosts = hosts or Hosts()
    if settings.batch_size % hosts.count:
        raise FineTuningError(
            f"supervised.batch_size is {settings.batch_size}, expected a multiple of learner.hosts.count, {hosts.count}"
        )
    length = engine.settings.sequence_length

    def reference(rows: Sequences) -> np.ndarray:
        return engine.statistics.logprobs(start, rows.tokens)

    def build(chosen: Sequence[Any]) -> Batch:
        if settings.loss == "cross_entropy":
            return _own_share(supervised_batch(chosen, sequence_length=length), hosts)
        known = reference if hosts.count == 1 else None
        return _own_share(preference_batch(chosen, sequence_length=length, reference=known), hosts)

    saved = step = first_step
    for built in _ahead(build, examples, settings.steps - first_step):
        if any(hosts.gather(should_stop(), "whether to stop")):
            break
        started = time.monotonic()
        # What several hosts compute together must be begun in one order by all, which threads don't keep.
        batch = with_reference(built, reference) if settings.loss == "dpo" and hosts.count > 1 else built
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


def _own_share(batch: Batch, hosts: Hosts) -> Batch:
    """This host's consecutive sequences; weights stay those of the whole batch, over which the loss is a mean."""
    size = batch.tokens.shape[0] // hosts.count
    first = hosts.index * size
    return jax.tree.map(lambda array: array[first : first + size], batch)


def _ahead(build: Callable[[Sequence[Any]], Batch], examples: Steps, count: int) -> Iterator[Batch]:
    """`count` batches, each built while the step before it runs."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(build, next(examples)) if count > 0 else None
        for left in reversed(range(count)):
            assert pending is not None
            batch = pending.result()
            pending = pool.submit(build, next(examples)) if left else None
            yield batch

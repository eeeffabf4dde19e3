"""Supervised training for a number of steps, on answers or on pairs of them; a restart goes on with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    batches = _Batches(engine, settings, start, hosts)
    saved = step = first_step
    for built in _ahead(batches.build, examples, settings.steps - first_step):
        if any(hosts.gather(should_stop(), "whether to stop")):
            break
        started = time.monotonic()
        state, metrics = engine.step(state, batches.completed(built), current_version=-1)
        step += 1
        told = _figures(metrics, step)
        log("warm_start", step=step, **told, accuracy=None, step_s=time.monotonic() - started)
        if step - saved >= settings.save_every:
            save(state, step)
            saved = step
    if step > saved:
        save(state, step)
    return state, step


@dataclass(frozen=True)
class _Batches:
    """Makes batches of examples, or of pairs with DPO's reference: built ahead in a thread, completed at their step."""

    engine: Engine
    settings: SupervisedSettings
    start: Params
    hosts: Hosts

    def build(self, chosen: Sequence[Any]) -> Batch:
        """This host's share of a batch; pairs of several hosts are still without their reference."""
        length = self.engine.settings.sequence_length
        if self.settings.loss == "cross_entropy":
            return _own_share(supervised_batch(chosen, sequence_length=length), self.hosts)
        known = self._reference if self.hosts.count == 1 else None
        return _own_share(preference_batch(chosen, sequence_length=length, reference=known), self.hosts)

    def completed(self, built: Batch) -> Batch:
        """What several hosts compute together must be begun in one order by all, which threads don't keep."""
        if self.settings.loss == "dpo" and self.hosts.count > 1:
            return with_reference(built, self._reference)
        return built

    def _reference(self, rows: Sequences) -> np.ndarray:
        return self.engine.statistics.logprobs(self.start, rows.tokens)


def _figures(metrics: Mapping[str, Any], step: int) -> dict[str, float]:
    """The loss, and a preference's figures. Raises `FineTuningError` where the loss is not finite."""
    found = {name: float(metrics[name]) for name in ("loss", "preference_accuracy", "margin") if name in metrics}
    if not math.isfinite(found["loss"]):
        raise FineTuningError(
            f"the supervised loss is {found['loss']} at step {step}: lower supervised.learning_rate, or look at the "
            f"model's weights"
        )
    return found


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

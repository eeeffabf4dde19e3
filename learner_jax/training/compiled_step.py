"""The train step, compiled once for its fixed shapes: gradients of one microbatch after another, then the update."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from learner_jax.batches import Batch, abstract_batch
from learner_jax.training.objective import Metrics, Objective, StepScalars
from learner_jax.training.packed_model import PackedModel
from learner_jax.training.states import States
from learner_jax.training.train_step import Gradients, Params, TrainState, add, make_gradients, make_update


class CompiledStep:
    """Gradients, their sum and the update, as programs.

    Args:
      states: that it steps from and to.
    """

    def __init__(
        self, model: PackedModel, objective: Objective, states: States, optimizer: optax.GradientTransformation
    ) -> None:
        self._settings, self._placement, self._states = model.settings, model.placement, states
        replicated: Any = self._placement.replicated
        # Fixed output shardings: left to the compiler, they may differ from the inputs' and recompile the second step.
        self._placed = Gradients(replicated, replicated, self._placement.parameters)
        self._gradients = jax.jit(make_gradients(model.loss, objective), out_shardings=self._placed)
        self._add = jax.jit(add, donate_argnums=0, out_shardings=self._placed)
        update = make_update(optimizer, effective_sample_exponent=self._settings.loss.effective_sample_exponent)
        self._update = jax.jit(update, donate_argnums=0, out_shardings=(states.shardings, replicated))
        self._programs: dict[Any, jax.stages.Compiled] = {}
        self._sum: jax.stages.Compiled | None = None

    def __call__(
        self, state: TrainState, microbatches: Iterable[Batch], scalars: StepScalars
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step; `state` is donated."""
        total: Gradients | None = None
        for microbatch in microbatches:
            more = self._program(state.params, microbatch, scalars)(state.params, microbatch, scalars)
            if self._sum is None:
                self._sum = self._add.lower(more, more).compile()
            total = more if total is None else self._sum(total, more)
        return self._update(state, total)

    def gradients(self, params: Params, microbatches: Iterable[Batch], scalars: StepScalars) -> Gradients:
        """Loss, metrics and gradients, without an update."""
        total: Gradients | None = None
        for microbatch in microbatches:
            more = self._gradients(params, microbatch, scalars)
            total = more if total is None else self._add(total, more)
        assert total is not None
        return total

    def lowered(self, row_tokens: int) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """(gradients of one microbatch, update), lowered from shapes alone: nothing is allocated."""
        state = _on(self._states.shardings, self._states.abstract())
        batch = self._rows(self._settings.microbatch_rows, row_tokens)
        scalars = jax.eval_shape(self._scalars)
        total = self._total(state.params, batch, scalars)
        return self._gradients.lower(state.params, batch, scalars), self._update.lower(state, total)

    def compile(self, state: TrainState) -> None:
        """Compiles what steps from this state need; the settings alone say what that is, and nothing runs."""
        batch = self._rows(self._placement.own_rows * self._placement.num_hosts, max(self._settings.row_lengths))
        scalars = self._scalars()
        self._program(state.params, batch, scalars)
        total = self._total(state.params, batch, scalars)
        if self._sum is None:
            self._sum = self._add.lower(total, total).compile()
        self._update.lower(state, total).compile()  # JAX keeps it for the first call

    def num_compilations(self) -> int:
        """How many programs have been compiled; the same after any number of steps."""
        update: Any = self._update
        return len(self._programs) + (self._sum is not None) + int(update._cache_size())

    def _rows(self, num_rows: int, row_tokens: int) -> Batch:
        """Shapes of a microbatch on the devices."""
        settings = self._settings
        batch = abstract_batch(
            settings.loss, num_rows=num_rows, row_tokens=row_tokens, minibatches=settings.minibatches
        )
        placed: Batch = _on(self._placement.rows, batch)
        return placed

    def _scalars(self) -> StepScalars:
        return StepScalars.of(self._settings.loss, current_version=0)

    def _total(self, params: Params, batch: Batch, scalars: StepScalars) -> Gradients:
        """Shapes of what microbatches add up to."""
        total = jax.eval_shape(self._gradients, params, batch, scalars)
        return Gradients(*(_on(getattr(self._placed, f), getattr(total, f)) for f in ("loss", "metrics", "grads")))

    def _program(self, params: Params, microbatch: Batch, scalars: StepScalars) -> jax.stages.Compiled:
        """The gradients' program for rows of this length; for the first batch of its kind, compiles those of all.

        A batch may have rows of another length, or one microbatch more, next time: what later steps may need is
        compiled with the first one, so that nothing is compiled after it.
        """
        structure = jax.tree.structure(microbatch)
        if (structure, microbatch.tokens.shape[1]) not in self._programs:
            for row_tokens in self._settings.row_lengths:
                rows = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct((x.shape[0], row_tokens), x.dtype, sharding=x.sharding),  # noqa: B023
                    microbatch,
                )
                self._programs[structure, row_tokens] = self._gradients.lower(params, rows, scalars).compile()
        return self._programs[structure, microbatch.tokens.shape[1]]


def _on(placed: Any, abstract: Any) -> Any:
    """Shapes with shardings: one for all arrays, or a tree of one for each."""
    if isinstance(placed, NamedSharding):
        placed = jax.tree.map(lambda _: placed, abstract)
    return jax.tree.map(lambda x, s: x.update(sharding=s), abstract, placed)

"""The KL's reference policy and its coefficient: where they come from, and how they move as training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.batches import Reference, Sequences
from learner_jax.contracts import Position
from learner_jax.loop.feed import Groups
from learner_jax.loop.reference_ahead import ReferenceAhead
from learner_jax.losses import adapted_coefficient
from learner_jax.models import split_parameters
from learner_jax.training import Engine, Params

Log = Callable[..., None]


class KLControl:
    """The reference policy, if the run has one, and the KL's coefficient.

    Args:
      start: parameters of the start model, which are the reference where none is given.
      reference: policy that the KL is measured against.
      log: told of "reference_reset".

    Attributes:
      coefficient: of the next step.
    """

    def __init__(self, engine: Engine, start: Params, *, reference: Params | None, log: Log) -> None:
        settings = engine.settings
        self._engine, self._settings, self._log = engine, settings.loss.kl, log
        self.coefficient = self._settings.coefficient
        self._keeps_reference = bool(self._settings.reset_every)
        self._reference: Params | None = None
        if self.coefficient > 0:
            self._reference = _copy(start) if reference is None else reference
        self._ahead = ReferenceAhead(
            self._reference_logprobs,
            sequence_length=settings.sequence_length,
            # Hosts must compute together, and what fills a microbatch of one does not fill the others'.
            microbatch_tokens=math.inf
            if engine.hosts.count > 1
            else settings.microbatch_rows * max(settings.row_lengths),
        )

    @property
    def is_on(self) -> bool:
        """Whether the run has a reference."""
        return self._reference is not None

    @property
    def policies(self) -> list[Params]:
        """The reference, if the run has one."""
        return [] if self._reference is None else [self._reference]

    @property
    def saved_reference(self) -> Params | None:
        """The reference, if a resumed run can't take it from where a fresh one does."""
        return self._reference if self._keeps_reference else None

    def found(self, holds_reference: Callable[[], bool]) -> None:
        """A checkpoint is resumed from: a reference that was moved stands, also where this life moves it no more.

        Args:
          holds_reference: whether the checkpoint has a reference of its own; asked only if the run has one.
        """
        self._keeps_reference |= self.is_on and holds_reference()

    def resumed(self, position: Position, reference: Params | None) -> None:
        """Goes on from a checkpoint's position and its reference, None if it has none."""
        self._reference = self._reference if reference is None else reference
        if self.is_on and self._settings.target is not None:  # else it is a setting alone
            self.coefficient = position.kl_coefficient or self.coefficient

    def arrived(self, groups: Groups) -> None:
        """Computes the reference's log-probs of groups while others are still being sampled."""
        if self.is_on:
            self._ahead.add(groups)

    def reference(self) -> tuple[Sequences | None, Reference | None]:
        """(sequences of the groups that arrived since the last call, their log-probs), for `rl_batch`; None if off."""
        return self._ahead.result() if self.is_on else (None, None)

    def step_completed(self, step: int, metrics: Mapping[str, float], params: Params) -> None:
        """Adapts the coefficient to its target, and moves the reference where that is scheduled.

        Args:
          step: optimizer steps completed.
          metrics: of the step; `kl` is the mean over its tokens, nats.
          params: of the policy now, with or without a value function; may be donated afterwards.
        """
        chosen = self._settings
        if chosen.target is not None:
            self.coefficient = adapted_coefficient(
                self.coefficient, metrics["kl"], target=chosen.target, horizon=chosen.horizon
            )
        if chosen.reset_every and step % chosen.reset_every == 0:
            self._reference = _copy(params)
            self._log("reference_reset", step=step)

    def _reference_logprobs(self, rows: Sequences) -> np.ndarray:
        return self._engine.statistics.logprobs(self._reference, rows.tokens, rows.sampled, rows.lengths)


def _copy(params: Params) -> Params:
    """The policy's parameters in buffers of their own: those of the state are donated to the train step."""
    return jax.tree.map(jnp.copy, split_parameters(params)[0])

"""Train states: how a fresh one is made, and where each of its arrays lies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from learner_jax.contracts import ModelConfig
from learner_jax.models import abstract_parameters, sharding
from learner_jax.models import value as value_model
from learner_jax.settings import LearnerSettings
from learner_jax.training.placement import Placement
from learner_jax.training.train_step import Params, TrainState, init_state


class States:
    """Makes states of one model and optimizer.

    Attributes:
      shardings: `TrainState` with a sharding in place of every array.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        model_config: ModelConfig,
        placement: Placement,
        optimizer: optax.GradientTransformation,
    ) -> None:
        self._value_kind = settings.loss.value.model
        self._model_config, self._placement, self._optimizer = model_config, placement, optimizer
        self.shardings = self._shard()

    def fresh(self, params: Params, *, seed: int) -> TrainState:
        """A fresh state around host or device parameters. Copies: `params` stay usable.

        Adds the value function that the settings ask for, unless the parameters hold one.
        """
        params = value_model.with_value_parameters(params, self._model_config, self._value_kind)
        params = sharding.place(params, self._placement.parameters)
        make = jax.jit(
            lambda params: init_state(jax.tree.map(jnp.copy, params), self._optimizer, seed=seed),
            out_shardings=self.shardings,
        )
        return make(params)

    def abstract(self) -> TrainState:
        """Shapes and dtypes of a state, nothing allocated."""
        value = value_model.abstract_value_parameters(self._model_config, self._value_kind)
        return jax.eval_shape(
            lambda params: init_state(params, self._optimizer, seed=0), abstract_parameters(self._model_config) | value
        )

    def _shard(self) -> Any:
        abstract, replicated = self.abstract(), self._placement.replicated

        def like_parameter(leaf: Any, parameter: Any, placed: NamedSharding) -> NamedSharding:
            # A second moment by rows and columns has other dimensions than its parameter, and is small.
            return placed if leaf.shape == parameter.shape else replicated

        opt_state = optax.tree_map_params(
            self._optimizer,
            like_parameter,
            abstract.opt_state,
            abstract.params,
            self._placement.parameters,
            transform_non_params=lambda _: replicated,
        )
        scalar: Any = replicated
        return TrainState(self._placement.parameters, opt_state, scalar, scalar)

"""The learner's compiled functions over one device mesh: train step, log-probs, values, golden prompts, mismatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from learner_jax import sharding, value_model
from learner_jax.advantages import ADVANTAGE_EPS
from learner_jax.batch import Batch
from learner_jax.config import LearnerSettings, LossSettings
from learner_jax.contracts import GoldenPrompt
from learner_jax.hf_names import ModelConfig
from learner_jax.model import TokenStats, abstract_parameters, merge, token_logprobs
from learner_jax.objective import Metrics, Objective, StepScalars, before, episode_targets
from learner_jax.optimizer import make_optimizer
from learner_jax.train_step import Params, TrainState, init_state, make_train_step


@dataclass(frozen=True)
class Mismatch:
    """Absolute differences between sampler and trainer log-probs of the same tokens under the same weights, nats."""

    total: float
    maximum: float
    num_tokens: int

    @property
    def mean(self) -> float | None:
        return self.total / self.num_tokens if self.num_tokens else None

    def __add__(self, other: Mismatch) -> Mismatch:
        return Mismatch(self.total + other.total, max(self.maximum, other.maximum), self.num_tokens + other.num_tokens)


def whole_batch_targets(
    settings: LossSettings, batch: Batch, values_after: jax.Array, policy_logprobs: jax.Array, scalars: StepScalars
) -> tuple[jax.Array, jax.Array]:
    """(advantages, value targets) of all rows of a batch; advantages normalised over all learned tokens if asked for.

    The normalisation is that of large-scale PPO practice (arXiv 2006.05990, section 3.4, "advantage normalization"),
    over the batch rather than a minibatch, so that splitting does not change it.
    """
    assert batch.episodes is not None
    advantages, targets = episode_targets(
        settings, batch, batch.episodes, values_after, policy_logprobs, jnp.zeros_like(policy_logprobs), scalars
    )
    if settings.advantage.whiten:
        learned = (batch.weights > 0).astype(advantages.dtype)
        count = jnp.maximum(jnp.sum(learned), 1.0)
        mean = jnp.sum(advantages * learned) / count
        deviation = jnp.sqrt(jnp.sum(jnp.square(advantages - mean) * learned) / count)
        advantages = learned * (advantages - mean) / (deviation + ADVANTAGE_EPS)
    return advantages, targets


class Engine:
    """Compiles each function once for its fixed shape and keeps arrays where the sharding rules put them.

    Args:
      temperature: the sampler's; log-probs of the train step are taken at it.
      objective: the token loss of the train step.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        model_config: ModelConfig,
        *,
        objective: Objective,
        temperature: float,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.settings = settings
        self.model_config = model_config
        self.mesh = sharding.make_mesh(settings.mesh, devices)
        self.parameter_shardings = sharding.parameter_shardings(model_config, self.mesh)
        self._all_shardings = self.parameter_shardings | sharding.value_shardings(
            model_config, settings.loss.value.model, self.mesh
        )
        self._batch_sharding = sharding.batch_sharding(self.mesh)
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._batch_pieces = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if settings.microbatch_rows % self._batch_pieces:
            raise sharding.ShardingError(
                f"learner.microbatch_rows is {settings.microbatch_rows} and does not divide over mesh.data x mesh.fsdp "
                f"= {self._batch_pieces}; make it a multiple of that"
            )
        self._optimizer = make_optimizer(settings.optimizer)
        self._temperature = temperature
        step = make_train_step(
            lambda params, tokens: self._token_stats(params, tokens, temperature),
            objective,
            self._optimizer,
            microbatch_rows=settings.microbatch_rows,
            effective_sample_exponent=settings.loss.effective_sample_exponent,
        )
        self._state_shardings = self._shard_state()
        # Fixed output shardings: left to the compiler, they may differ from the inputs' and recompile the second step.
        self._train_step = jax.jit(step, donate_argnums=0, out_shardings=(self._state_shardings, self._replicated))
        self._stats = jax.jit(self._token_stats, static_argnums=2)
        self._published = jax.jit(self._cast_for_publishing)
        self._targets = jax.jit(partial(whole_batch_targets, settings.loss))

    def _token_stats(self, params: Params, tokens: jax.Array, temperature: float) -> TokenStats:
        policy, value = value_model.split_parameters(params)
        wire = partial(
            merge,
            compute_dtype=self.settings.compute_dtype,
            remat=self.settings.remat,
            activation_sharding=self._batch_sharding if tokens.shape[0] % self._batch_pieces == 0 else None,
        )
        model = wire(self.model_config, policy)
        hidden = model.hidden_states(tokens)
        stats = token_logprobs(
            model,
            tokens,
            hidden=hidden,
            temperature=temperature,
            chunk_tokens=self.settings.logits_chunk_tokens,
            entropy_gradient=self.settings.loss.entropy_coefficient > 0,
        )
        if value is None:
            return stats
        if "trunk" in value:
            hidden = wire(value_model.trunk_config(self.model_config), value["trunk"]).hidden_states(tokens)
        return replace(stats, values_after=value_model.head_values(value["head"], hidden))

    def _cast_for_publishing(self, params: Params) -> Params:
        dtype = jnp.dtype(self.settings.publish_dtype)
        return jax.tree.map(lambda x: x.astype(dtype), value_model.split_parameters(params)[0])

    def init_state(self, params: Params, *, seed: int) -> TrainState:
        """A fresh state around host or device parameters, sharded by the rules. Copies: `params` stay usable.

        Adds the value function that the settings ask for, unless the parameters hold one.
        """
        params = value_model.with_value_parameters(params, self.model_config, self.settings.loss.value.model)
        params = jax.device_put(params, self._all_shardings)
        make = jax.jit(
            lambda params: init_state(jax.tree.map(jnp.copy, params), self._optimizer, seed=seed),
            out_shardings=self._state_shardings,
        )
        return make(params)

    def placed(self, policy: Params) -> Params:
        """The policy's parameters, from the host, where the sharding rules put them."""
        return jax.device_put(policy, self.parameter_shardings)

    def _shard_state(self) -> Any:
        """`TrainState` with a sharding in place of every array."""
        value = value_model.abstract_value_parameters(self.model_config, self.settings.loss.value.model)
        abstract = jax.eval_shape(
            lambda params: init_state(params, self._optimizer, seed=0),
            abstract_parameters(self.model_config) | value,
        )
        opt_state = optax.tree_map_params(
            self._optimizer,
            lambda _, like: like,
            abstract.opt_state,
            self._all_shardings,
            transform_non_params=lambda _: self._replicated,
        )
        scalar: Any = self._replicated
        return TrainState(self._all_shardings, opt_state, scalar, scalar)

    def step(
        self,
        state: TrainState,
        batch: Batch,
        *,
        current_version: int,
        changed_version: int | None = None,
        kl_coefficient: float | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step; `state` is donated.

        Args:
          changed_version: as of `StepScalars`; `current_version` by default.
          kl_coefficient: the settings' by default.
        """
        batch = jax.device_put(batch, self._batch_sharding)
        return self._train_step(state, batch, self._scalars(current_version, changed_version, kl_coefficient))

    def _scalars(self, current_version: int, changed_version: int | None, kl_coefficient: float | None) -> StepScalars:
        return StepScalars(
            current_version=jnp.int32(current_version),
            changed_version=jnp.int32(current_version if changed_version is None else changed_version),
            kl_coefficient=jnp.float32(self.settings.loss.kl.coefficient if kl_coefficient is None else kl_coefficient),
        )

    def prepared(
        self, params: Params, batch: Batch, *, current_version: int, kl_coefficient: float | None = None
    ) -> Batch:
        """Adds what must be known of the whole batch before its first gradient, by one forward pass over it.

        That is the proximal policy's log-probs when the batch makes several updates, and for gae advantages, value
        targets and old values. Without such a need the batch comes back as it is.
        """
        loss = self.settings.loss
        several = self.settings.minibatches > 1
        ahead = loss.advantage.estimator == "gae" and (several or loss.needs_values_ahead)
        if not several and not ahead:
            return batch
        rows = batch.tokens.shape[0]
        parts = self._microbatches(params, np.asarray(batch.tokens))
        logprobs = np.concatenate([np.asarray(part.logprobs) for part in parts])[:rows]
        if several:
            batch = replace(batch, proximal_logprobs=jnp.asarray(logprobs))
        if ahead:
            values_after = np.concatenate([np.asarray(part.values_after) for part in parts])[:rows]
            scalars = self._scalars(current_version, None, kl_coefficient)
            advantages, targets = self._targets(batch, values_after, logprobs, scalars)
            batch = replace(batch, advantages=advantages, value_targets=targets, old_values=before(values_after))
        return batch

    def logprobs(self, params: Params, tokens: np.ndarray) -> np.ndarray:
        """Log-probs float32[B, T] of a batch's tokens at the sampler's temperature, in microbatches."""
        return np.concatenate([np.asarray(part.logprobs) for part in self._microbatches(params, tokens)])[: len(tokens)]

    def all_correct(self, params: Params, tokens: np.ndarray, loss_mask: np.ndarray) -> np.ndarray:
        """bool[B]: greedy decoding would produce exactly the masked tokens of the row."""
        correct = np.concatenate([np.asarray(part.argmax_correct) for part in self._microbatches(params, tokens)])
        return (correct[: len(tokens)] | ~loss_mask).all(axis=1)

    def _microbatches(self, params: Params, tokens: np.ndarray) -> list[TokenStats]:
        """Statistics of all rows in pieces of one shape; the last piece is padded with empty rows."""
        rows = self.settings.microbatch_rows
        padded = np.pad(tokens, [(0, -len(tokens) % rows), (0, 0)])
        return [
            self._stats(params, jax.device_put(padded[start : start + rows], self._batch_sharding), self._temperature)
            for start in range(0, len(padded), rows)
        ]

    def published(self, params: Params) -> Params:
        """A copy of the parameters in the dtype that the fleet serves."""
        return self._published(params)

    def golden(self, published: Params, prompts: Sequence[Sequence[int]]) -> list[GoldenPrompt]:
        """The learner's log-probs (temperature 1) of the golden prompts under published weights."""
        width = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        logprobs = np.asarray(self._stats(published, jnp.asarray(tokens), 1.0).logprobs)
        return [
            GoldenPrompt(tokens=list(prompt), logprobs=[float(x) for x in logprobs[row, 1 : len(prompt)]])
            for row, prompt in enumerate(prompts)
        ]

    def trainer_logprobs(self, batch: Batch, published: Mapping[int, Params], *, current_version: int) -> np.ndarray:
        """The trainer's own log-probs float32[B, T] of tokens of older versions, under those versions' weights.

        Tokens whose version is not in `published` keep the sampler's, and so do those of `current_version`, which the
        train step computes itself.
        """
        logprobs = np.array(batch.behavior_logprobs)
        versions, tokens = np.asarray(batch.policy_version), np.asarray(batch.tokens)
        for version, params in published.items():
            (rows,) = np.nonzero((versions == version).any(axis=1))
            if version == current_version or not len(rows):
                continue
            recomputed = self.logprobs(params, tokens[rows])
            logprobs[rows] = np.where(versions[rows] == version, recomputed, logprobs[rows])
        return logprobs

    def lagging_mismatch(self, batch: Batch, published: Mapping[int, Params], *, current_version: int) -> Mismatch:
        """Compares sampler and trainer on tokens of older versions whose weights are still in memory.

        Tokens of `current_version` are left out: the train step measures all of those for free. At most
        `mismatch_rows` rows per version are recomputed.
        """
        rows = self.settings.mismatch_rows
        total = Mismatch(0.0, 0.0, 0)
        versions = np.asarray(batch.policy_version)
        for version, params in published.items():
            if version == current_version or not rows:
                continue
            (chosen,) = np.nonzero((versions == version).any(axis=1))
            if not len(chosen):
                continue
            chosen = np.resize(chosen[:rows], rows)  # repeats rows to keep the shape; counted once below
            unique = len(np.unique(chosen))
            logprobs = np.asarray(self._stats(params, jnp.asarray(batch.tokens[chosen]), self._temperature).logprobs)
            sampled = (versions[chosen] == version) & (np.arange(rows) < unique)[:, None]
            difference = np.abs(logprobs - batch.behavior_logprobs[chosen])[sampled]
            total += Mismatch(float(difference.sum()), float(difference.max()), int(difference.size))
        return total

    def num_compilations(self) -> int:
        """How many programs have been compiled for the train step; 1 after any number of steps."""
        return int(self._train_step._cache_size())  # type: ignore[attr-defined]

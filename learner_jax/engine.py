"""The learner's compiled functions over one device mesh: train step, log-probs, values, golden prompts, mismatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from learner_jax import attention, flops, sharding, value_model
from learner_jax.advantages import ADVANTAGE_EPS
from learner_jax.batch import Batch, abstract_batch, batch_lengths, packed
from learner_jax.config import LearnerSettings, LossSettings
from learner_jax.contracts import GoldenPrompt
from learner_jax.head import fused_loss, scored_stats
from learner_jax.hf_names import ModelConfig
from learner_jax.layout import Layout
from learner_jax.model import Decoder, TokenStats, abstract_parameters, merge
from learner_jax.objective import Metrics, Objective, StepScalars, before, episode_targets
from learner_jax.optimizer import make_optimizer
from learner_jax.packing import Lengths, Plan, one_per_row, plan_rows
from learner_jax.train_step import Gradients, Params, TrainState, add, init_state, make_gradients, make_update

#: Most sequences in a row for cuDNN's attention, which reserves memory for each.
MAX_SEGMENTS = 64


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


@dataclass(frozen=True)
class PackedBatch:
    """A batch in rows, its first microbatch on the devices.

    Attributes:
      rows: on the host, [R, L] per field.
      model_flops: of a train step over its real tokens.
    """

    rows: Batch
    plan: Plan
    first: Batch
    model_flops: float


class Engine:
    """Compiles each function once for its fixed shapes and keeps arrays where the sharding rules put them.

    Args:
      temperature: the sampler's; log-probs of the train step are taken at it.
      objective: the loss of the train step.
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
        sharding.check_rows(settings.microbatch_rows, self.mesh)
        self.attention = attention.attention_implementation(self.platform, settings.compute_dtype)
        if settings.attention != "auto":
            self.attention = settings.attention
        self._max_segments = MAX_SEGMENTS if self.attention == "cudnn" else None
        for row_tokens in settings.row_lengths:
            attention.check_supported(self.attention, head_dim=model_config.head_dim, row_tokens=row_tokens)
        self._objective = objective
        self._optimizer = make_optimizer(settings.optimizer)
        self._temperature = temperature
        self._state_shardings = self._shard_state()
        self._warm: set[Any] = set()
        self._compile(objective)

    def _compile(self, objective: Objective) -> None:
        # Fixed output shardings: left to the compiler, they may differ from the inputs' and recompile the second step.
        placed = Gradients(self._replicated, self._replicated, self._all_shardings)  # type: ignore[arg-type]
        self._gradients = jax.jit(make_gradients(self._microbatch_loss, objective), out_shardings=placed)
        self._add = jax.jit(add, donate_argnums=0, out_shardings=placed)
        update = make_update(self._optimizer, effective_sample_exponent=self.settings.loss.effective_sample_exponent)
        self._update = jax.jit(update, donate_argnums=0, out_shardings=(self._state_shardings, self._replicated))
        self._stats = jax.jit(self._token_stats, static_argnums=(4, 5), out_shardings=self._batch_sharding)
        self._plain_stats = jax.jit(self._token_stats, static_argnums=(4, 5), out_shardings=self._replicated)
        self._published = jax.jit(self._cast_for_publishing)
        self._targets = jax.jit(partial(whole_batch_targets, self.settings.loss))

    @property
    def platform(self) -> str:
        return str(self.mesh.devices.flat[0].platform)

    # The model on packed rows.

    def _trunk(self, params: Params, tokens: jax.Array, layout: Layout) -> tuple[Decoder, jax.Array, jax.Array | None]:
        """(the policy's decoder, its activations, values after every token where there is a value function)."""
        policy, value = value_model.split_parameters(params)
        wire = partial(
            merge,
            compute_dtype=self.settings.compute_dtype,
            remat=self.settings.remat,
            attention=self.attention,
            max_segments=self._max_segments,
            activation_sharding=self._batch_sharding if self._spreads(tokens) else None,
        )
        shared = attention.shares_prefixes(self.attention)
        rows = (layout.positions, layout.segments, layout.prefixes if shared else None)
        model = wire(self.model_config, policy)
        hidden = model.hidden_states(tokens, *rows)
        if value is None:
            return model, hidden, None
        seen = hidden
        if "trunk" in value:
            seen = wire(value_model.trunk_config(self.model_config), value["trunk"]).hidden_states(tokens, *rows)
        return model, hidden, value_model.head_values(value["head"], seen)

    def _spreads(self, tokens: jax.Array) -> bool:
        """Whether these rows divide over the mesh; a few golden prompts may not."""
        return tokens.shape[0] % sharding.num_row_shards(self.mesh) == 0

    def _token_stats(
        self,
        params: Params,
        tokens: jax.Array,
        layout: Layout,
        scored: jax.Array,
        temperature: float,
        with_argmax: bool = False,
    ) -> TokenStats:
        model, hidden, values_after = self._trunk(params, tokens, layout)
        out = scored_stats(
            hidden,
            model.head_weight,
            tokens,
            layout.predecessors,
            scored & (layout.predecessors >= 0),
            temperature=temperature,
            chunk_tokens=self.settings.logits_chunk_tokens,
            entropy_gradient=self.settings.loss.entropy_coefficient > 0,
            with_argmax=with_argmax,
            mesh=self.mesh if self._spreads(tokens) else None,
        )
        return TokenStats(out.logprobs, out.entropy, out.argmax_correct, values_after)

    def _microbatch_loss(
        self, params: Params, batch: Batch, scalars: StepScalars, objective: Objective
    ) -> tuple[jax.Array, Metrics]:
        assert batch.layout is not None
        scored = (batch.weights != 0) & (batch.layout.predecessors >= 0)
        if not objective.token_local:
            stats = self._token_stats(params, batch.tokens, batch.layout, scored, self._temperature)
            return objective(stats, batch, scalars)
        model, hidden, values_after = self._trunk(params, batch.tokens, batch.layout)

        def token_loss(logprobs: jax.Array, entropy: jax.Array, chunk: Batch) -> jax.Array:
            return objective(TokenStats(logprobs, entropy), chunk, scalars)[0]

        loss, out = fused_loss(
            hidden,
            model.head_weight,
            batch.tokens,
            batch.layout.predecessors,
            scored,
            replace(batch, layout=None),
            token_loss,
            temperature=self._temperature,
            chunk_tokens=self.settings.logits_chunk_tokens,
            mesh=self.mesh,
        )
        stats = TokenStats(out.logprobs, out.entropy, None, values_after)
        return loss, objective(stats, batch, scalars)[1]

    def _cast_for_publishing(self, params: Params) -> Params:
        dtype = jnp.dtype(self.settings.publish_dtype)
        return jax.tree.map(lambda x: x.astype(dtype), value_model.split_parameters(params)[0])

    # State.

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

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of a state, nothing allocated."""
        value = value_model.abstract_value_parameters(self.model_config, self.settings.loss.value.model)
        return jax.eval_shape(
            lambda params: init_state(params, self._optimizer, seed=0), abstract_parameters(self.model_config) | value
        )

    def _shard_state(self) -> Any:
        """`TrainState` with a sharding in place of every array."""
        abstract = self.abstract_state()

        def like_parameter(leaf: Any, parameter: Any, placed: NamedSharding) -> NamedSharding:
            # A second moment by rows and columns has other dimensions than its parameter, and is small.
            return placed if leaf.shape == parameter.shape else self._replicated

        opt_state = optax.tree_map_params(
            self._optimizer,
            like_parameter,
            abstract.opt_state,
            abstract.params,
            self._all_shardings,
            transform_non_params=lambda _: self._replicated,
        )
        scalar: Any = self._replicated
        return TrainState(self._all_shardings, opt_state, scalar, scalar)

    # The train step.

    def step(
        self,
        state: TrainState,
        batch: Batch | PackedBatch,
        *,
        current_version: int,
        changed_version: int | None = None,
        kl_coefficient: float | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step; `state` is donated.

        Args:
          batch: as `rl_batch` and `supervised_batch` build it, or packed ahead by `pack`.
          changed_version: as of `StepScalars`; `current_version` by default.
          kl_coefficient: the settings' by default.
        """
        scalars = self._scalars(current_version, changed_version, kl_coefficient)
        whole = self.pack(batch) if isinstance(batch, Batch) else batch
        total: Gradients | None = None
        for microbatch in self._transferred(whole.rows, whole.plan.num_rows, whole.first):
            if total is None:
                total = self._warmed_gradients(state.params, microbatch, scalars)
            else:
                total = self._add(total, self._gradients(state.params, microbatch, scalars))
        return self._update(state, total)

    def pack(self, batch: Batch) -> PackedBatch:
        """Lays a batch into rows and moves the first microbatch to the devices.

        Raises:
          PackingError: a sequence is longer than the longest row.
        """
        plan = self.plan(batch_lengths(batch), batch.tokens.shape[1])
        rows = packed(batch, plan)
        num_scored = int(np.count_nonzero(rows.weights))
        model_flops = flops.train_step_flops(self.model_config, plan.layout, num_scored)
        first = self._put(rows, 0)
        jax.block_until_ready(first)
        return PackedBatch(rows, plan, first, model_flops)

    def gradients(
        self, params: Params, batch: Batch, *, current_version: int, kl_coefficient: float | None = None
    ) -> Gradients:
        """Loss, metrics and gradients of a whole batch, without an update."""
        scalars = self._scalars(current_version, None, kl_coefficient)
        whole = self.pack(batch)
        total: Gradients | None = None
        for microbatch in self._transferred(whole.rows, whole.plan.num_rows, whole.first):
            more = self._gradients(params, microbatch, scalars)
            total = more if total is None else self._add(total, more)
        assert total is not None
        return total

    def plan(self, lengths: Lengths, width: int) -> Plan:
        """How these sequences, padded to `width` tokens on the host, are laid into rows.

        Raises:
          PackingError: one is longer than the longest row.
        """
        settings = self.settings
        if not self._objective.packs:
            return one_per_row(
                lengths,
                width=width,
                row_tokens=max(settings.row_lengths),
                rows_multiple=settings.microbatch_rows,
            )
        return plan_rows(
            lengths,
            width=width,
            row_lengths=settings.row_lengths,
            rows_multiple=settings.microbatch_rows,
            may_share=settings.share_prompts == "auto" and attention.shares_prefixes(self.attention),
            max_segments=self._max_segments,
            attention_weight=flops.attention_weight(self.model_config),
        )

    def _transferred(self, rows: Any, num_rows: int, first: Any = None) -> Iterator[Any]:
        """Microbatches of a pytree of rows on the devices, the next one on its way while one is used."""
        ahead = self._put(rows, 0) if first is None else first
        for start in range(self.settings.microbatch_rows, num_rows, self.settings.microbatch_rows):
            current, ahead = ahead, self._put(rows, start)
            yield current
        yield ahead

    def _put(self, rows: Any, start: int) -> Any:
        end = start + self.settings.microbatch_rows
        return jax.device_put(jax.tree.map(lambda x: x[start:end], rows), self._batch_sharding)

    def _warmed_gradients(self, params: Params, microbatch: Batch, scalars: StepScalars) -> Gradients:
        """Gradients of a step's first microbatch; of the first step, also compiles what later steps may need.

        A batch may fit into one microbatch now and need two, or rows of another length, next time: an empty microbatch
        of every row length is accumulated once, so that nothing is compiled after the first step.
        """
        kind = (jax.tree.structure(microbatch), microbatch.tokens.shape)
        total = self._gradients(params, microbatch, scalars)
        if kind in self._warm:
            return total
        for row_tokens in self.settings.row_lengths:
            empty = _empty_rows(microbatch, row_tokens)
            placed = jax.device_put(empty, self._batch_sharding)
            self._warm.add((jax.tree.structure(microbatch), placed.tokens.shape))
            total = self._add(total, self._gradients(params, placed, scalars))
        return total

    def _scalars(self, current_version: int, changed_version: int | None, kl_coefficient: float | None) -> StepScalars:
        return StepScalars(
            current_version=jnp.int32(current_version),
            changed_version=jnp.int32(current_version if changed_version is None else changed_version),
            kl_coefficient=jnp.float32(self.settings.loss.kl.coefficient if kl_coefficient is None else kl_coefficient),
        )

    def lowered(self, row_tokens: int) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """(gradients of one microbatch, update), lowered from shapes alone: nothing is allocated."""

        def place(abstract: Any, placed: Any) -> Any:
            if isinstance(placed, NamedSharding):
                placed = jax.tree.map(lambda _: placed, abstract)
            return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)

        settings = self.settings
        state = place(self.abstract_state(), self._state_shardings)
        batch = place(
            abstract_batch(
                settings.loss,
                num_rows=settings.microbatch_rows,
                row_tokens=row_tokens,
                minibatches=settings.minibatches,
            ),
            self._batch_sharding,
        )
        scalars = jax.eval_shape(lambda: self._scalars(0, None, None))
        total = jax.eval_shape(self._gradients, state.params, batch, scalars)
        placed = Gradients(self._replicated, self._replicated, self._all_shardings)  # type: ignore[arg-type]
        total = Gradients(*(place(getattr(total, f), getattr(placed, f)) for f in ("loss", "metrics", "grads")))
        return self._gradients.lower(state.params, batch, scalars), self._update.lower(state, total)

    def num_compilations(self) -> int:
        """How many programs have been compiled for the train step; the same after any number of steps."""
        programs: Any = (self._gradients, self._add, self._update)
        return sum(int(program._cache_size()) for program in programs)

    # Statistics of whole batches.

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
        stats = self.statistics(params, np.asarray(batch.tokens), np.asarray(batch.weights) != 0, batch_lengths(batch))
        if several:
            batch = replace(batch, proximal_logprobs=stats.logprobs)
        if ahead:
            assert stats.values_after is not None
            scalars = self._scalars(current_version, None, kl_coefficient)
            advantages, targets = self._targets(batch, stats.values_after, stats.logprobs, scalars)
            old_values = before(stats.values_after)
            batch = replace(batch, advantages=advantages, value_targets=targets, old_values=old_values)
        return batch

    def statistics(
        self,
        params: Params,
        tokens: np.ndarray,
        scored: np.ndarray | None = None,
        lengths: Lengths | None = None,
        *,
        with_argmax: bool = False,
    ) -> TokenStats:
        """Statistics [B, T] of sequences on the host, at the sampler's temperature, computed in packed microbatches.

        Args:
          scored: bool[B, T], tokens whose log-probs are wanted; all but the first of each row by default.
          lengths: of the sequences; all T tokens by default.
        """
        width = tokens.shape[1]
        plan = self.plan(Lengths.of([width] * len(tokens)) if lengths is None else lengths, width)
        scored = np.ones(tokens.shape, bool) if scored is None else scored
        parts = [
            self._stats(params, *part, self._temperature, with_argmax)
            for part in self._transferred((plan.pack(tokens), plan.layout, plan.pack(scored)), plan.num_rows)
        ]
        return jax.tree.map(lambda *x: plan.unpack(np.concatenate([np.asarray(piece) for piece in x])), *parts)

    def logprobs(
        self,
        params: Params,
        tokens: np.ndarray,
        scored: np.ndarray | None = None,
        lengths: Lengths | None = None,
    ) -> np.ndarray:
        """Log-probs float32[B, T] of `statistics`."""
        return np.asarray(self.statistics(params, tokens, scored, lengths).logprobs)

    def all_correct(
        self, params: Params, tokens: np.ndarray, loss_mask: np.ndarray, lengths: Lengths | None = None
    ) -> np.ndarray:
        """bool[B]: greedy decoding would produce exactly the masked tokens of the row."""
        correct = self.statistics(params, tokens, loss_mask, lengths, with_argmax=True).argmax_correct
        return (np.asarray(correct) | ~loss_mask).all(axis=1)

    def published(self, params: Params) -> Params:
        """A copy of the parameters in the dtype that the fleet serves."""
        return self._published(params)

    def golden_logprobs(self, published: Params, prompts: Sequence[Sequence[int]]) -> jax.Array:
        """Log-probs (temperature 1) of the golden prompts under published weights, still on the device."""
        width = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        plan = one_per_row(Lengths.of([len(p) for p in prompts]), width=width, row_tokens=width)
        scored = plan.layout.predecessors >= 0
        return self._plain_stats(published, tokens, plan.layout, scored, 1.0, False).logprobs

    @staticmethod
    def golden(logprobs: jax.Array, prompts: Sequence[Sequence[int]]) -> list[GoldenPrompt]:
        """The learner's own log-probs of the golden prompts, as they travel with the weights."""
        values = np.asarray(logprobs)
        return [
            GoldenPrompt(tokens=list(prompt), logprobs=[float(x) for x in values[row, 1 : len(prompt)]])
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
            sampled = versions == version
            (rows,) = np.nonzero(sampled.any(axis=1))
            if version == current_version or not len(rows):
                continue
            recomputed = self.logprobs(params, tokens[rows], sampled[rows], _chosen(batch_lengths(batch), rows))
            logprobs[rows] = np.where(sampled[rows], recomputed, logprobs[rows])
        return logprobs

    def lagging_mismatch(self, batch: Batch, published: Mapping[int, Params], *, current_version: int) -> Mismatch:
        """Compares sampler and trainer on tokens of older versions whose weights are still in memory.

        Tokens of `current_version` are left out: the train step measures all of those for free. At most
        `mismatch_rows` sequences per version are recomputed.
        """
        total = Mismatch(0.0, 0.0, 0)
        versions, tokens = np.asarray(batch.policy_version), np.asarray(batch.tokens)
        for version, params in published.items():
            sampled = versions == version
            rows = np.flatnonzero(sampled.any(axis=1))[: self.settings.mismatch_rows]
            if version == current_version or not len(rows):
                continue
            logprobs = self.logprobs(params, tokens[rows], sampled[rows], _chosen(batch_lengths(batch), rows))
            difference = np.abs(logprobs - np.asarray(batch.behavior_logprobs)[rows])[sampled[rows]]
            total += Mismatch(float(difference.sum()), float(difference.max()), int(difference.size))
        return total


def _chosen(lengths: Lengths, rows: np.ndarray) -> Lengths:
    return Lengths(lengths.tokens[rows], lengths.groups[rows], lengths.shared[rows])


def _empty_rows(like: Batch, row_tokens: int) -> Batch:
    """Rows of padding with the fields of `like`."""

    def padding(x: Any) -> np.ndarray:
        return np.zeros((x.shape[0], row_tokens), x.dtype)

    assert like.layout is not None
    empty = jax.tree.map(padding, like)
    nothing = jax.tree.map(lambda x: np.full_like(padding(x), -1), like.layout)
    return replace(empty, layout=replace(nothing, positions=padding(like.layout.positions)))

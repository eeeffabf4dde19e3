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

from learner_jax.batches import Batch, Lengths, Plan, abstract_batch, batch_lengths, one_per_row, packed, plan_rows
from learner_jax.contracts import GoldenPrompt, ModelConfig
from learner_jax.hosts import Hosts
from learner_jax.losses import ADVANTAGE_EPS
from learner_jax.models import (
    Decoder,
    Layout,
    TokenStats,
    abstract_parameters,
    attention,
    flops,
    fused_loss,
    merge,
    scored_stats,
    sharding,
)
from learner_jax.models import value as value_model
from learner_jax.settings import LearnerSettings, LossSettings
from learner_jax.training.objective import Metrics, Objective, StepScalars, before, episode_targets
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.train_step import Gradients, Params, TrainState, add, init_state, make_gradients, make_update

#: Statistics of little go through the devices in rows by this many times fewer than those of a microbatch.
_FEW = 8

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
      hosts: processes over which the mesh spreads. Batches, and statistics of their tokens, are then this host's part;
        every method that takes a batch or parameters must be called on all hosts, in the same order.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        model_config: ModelConfig,
        *,
        objective: Objective,
        temperature: float,
        devices: Sequence[jax.Device] | None = None,
        hosts: Hosts | None = None,
    ):
        self.settings = settings
        self.hosts = hosts or Hosts()
        self.model_config = model_config
        self.mesh = sharding.make_mesh(settings.mesh, devices)
        self.parameter_shardings = sharding.parameter_shardings(model_config, self.mesh)
        self._all_shardings = self.parameter_shardings | sharding.value_shardings(
            model_config, settings.loss.value.model, self.mesh
        )
        self._batch_sharding = sharding.batch_sharding(self.mesh)
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        sharding.check_rows(settings.microbatch_rows, self.mesh)
        sharding.check_hosts(self.mesh, self.hosts.count)
        self._own_rows = settings.microbatch_rows // self.hosts.count
        # A few sequences alone should not cost a whole microbatch.
        shards = max(1, sharding.num_row_shards(self.mesh) // self.hosts.count)
        self._few_rows = max(shards, self._own_rows // _FEW // shards * shards)
        self.attention = attention.attention_implementation(self.platform, settings.compute_dtype)
        if settings.attention != "auto":
            self.attention = settings.attention
        self._max_segments = MAX_SEGMENTS if self.attention == "cudnn" else None
        for row_tokens in settings.row_lengths:
            attention.check_supported(
                self.attention,
                head_dim=model_config.head_dim,
                row_tokens=row_tokens,
                compute_capability=getattr(self.mesh.devices.flat[0], "compute_capability", None),
            )
        self._objective = objective
        self._optimizer = make_optimizer(settings.optimizer)
        self._temperature = temperature
        self._state_shardings = self._shard_state()
        self._programs: dict[Any, jax.stages.Compiled] = {}
        self._sum: jax.stages.Compiled | None = None
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
            activation_sharding=self._batch_sharding,
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
            mesh=self.mesh,
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
        params = sharding.place(params, self._all_shardings)
        make = jax.jit(
            lambda params: init_state(jax.tree.map(jnp.copy, params), self._optimizer, seed=seed),
            out_shardings=self._state_shardings,
        )
        return make(params)

    def placed(self, policy: Params) -> Params:
        """The policy's parameters, from the host, where the sharding rules put them."""
        return sharding.place(policy, self.parameter_shardings)

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
            more = self._program(state.params, microbatch, scalars)(state.params, microbatch, scalars)
            if self._sum is None:
                self._sum = self._add.lower(more, more).compile()
            total = more if total is None else self._sum(total, more)
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
        first = self._put(rows, 0, self._own_rows)
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

    def plan(self, lengths: Lengths, width: int, *, rows_multiple: int | None = None) -> Plan:
        """How these sequences, padded to `width` tokens on the host, are laid into rows; whole microbatches by default.

        Raises:
          PackingError: one is longer than the longest row.
        """
        settings, rows_multiple = self.settings, rows_multiple or self._own_rows
        gather = partial(self.hosts.gather, what="rows that a batch needs")
        if not self._objective.packs:
            return one_per_row(
                lengths,
                width=width,
                row_tokens=max(settings.row_lengths),
                rows_multiple=rows_multiple,
                gather=gather,
            )
        return plan_rows(
            lengths,
            width=width,
            row_lengths=settings.row_lengths,
            rows_multiple=rows_multiple,
            may_share=settings.share_prompts == "auto" and attention.shares_prefixes(self.attention),
            max_segments=self._max_segments,
            attention_weight=flops.attention_weight(self.model_config),
            gather=gather,
        )

    def _transferred(self, rows: Any, num_rows: int, first: Any = None, *, size: int | None = None) -> Iterator[Any]:
        """`size` rows (a microbatch) at a time on the devices, the next ones on their way while some are used."""
        size = size or self._own_rows
        ahead = self._put(rows, 0, size) if first is None else first
        for start in range(size, num_rows, size):
            current, ahead = ahead, self._put(rows, start, size)
            yield current
        yield ahead

    def _put(self, rows: Any, start: int, size: int) -> Any:
        part = jax.tree.map(lambda x: x[start : start + size], rows)
        return sharding.place_rows(part, self._batch_sharding, self.hosts.count)

    def _program(self, params: Params, microbatch: Batch, scalars: StepScalars) -> jax.stages.Compiled:
        """The gradients' program for rows of this length; for the first batch of its kind, compiles those of all.

        A batch may have rows of another length, or one microbatch more, next time: what later steps may need is
        compiled with the first one, so that nothing is compiled after it.
        """
        structure = jax.tree.structure(microbatch)
        if (structure, microbatch.tokens.shape[1]) not in self._programs:
            for row_tokens in self.settings.row_lengths:
                rows = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct((x.shape[0], row_tokens), x.dtype, sharding=x.sharding),  # noqa: B023
                    microbatch,
                )
                self._programs[structure, row_tokens] = self._gradients.lower(params, rows, scalars).compile()
        return self._programs[structure, microbatch.tokens.shape[1]]

    def _scalars(self, current_version: int, changed_version: int | None, kl_coefficient: float | None) -> StepScalars:
        changed = current_version if changed_version is None else changed_version
        coefficient = self.settings.loss.kl.coefficient if kl_coefficient is None else kl_coefficient
        values: Any = (np.int32(current_version), np.int32(changed), np.float32(coefficient))
        return StepScalars(*values)

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
        update: Any = self._update
        return len(self._programs) + (self._sum is not None) + int(update._cache_size())

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
        lengths = Lengths.of([width] * len(tokens)) if lengths is None else lengths
        plan, size = self.plan(lengths, width, rows_multiple=self._few_rows), self._few_rows
        if plan.num_rows > size:
            plan, size = self.plan(lengths, width), self._own_rows
        scored = np.ones(tokens.shape, bool) if scored is None else scored
        rows = (plan.pack(tokens), plan.layout, plan.pack(scored))
        parts = [
            self._stats(params, *part, self._temperature, with_argmax)
            for part in self._transferred(rows, plan.num_rows, size=size)
        ]
        return jax.tree.map(lambda *x: plan.unpack(np.concatenate([sharding.own_rows(piece) for piece in x])), *parts)

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
        # Rows that every mesh and kernel can take: as many as divide over the mesh, of a length that the kernel knows.
        multiple = attention.row_multiple(self.attention)
        width = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        plan = one_per_row(
            Lengths.of([len(prompt) for prompt in prompts]),
            width=width,
            row_tokens=width,
            rows_multiple=sharding.num_row_shards(self.mesh),
        )
        scored = plan.layout.predecessors >= 0
        return self._plain_stats(published, plan.pack(tokens), plan.layout, scored, 1.0, False).logprobs

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
            if version == current_version or not self._on_any_host(rows):
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
        most = -(-self.settings.mismatch_rows // self.hosts.count)
        versions, tokens = np.asarray(batch.policy_version), np.asarray(batch.tokens)
        for version, params in published.items():
            sampled = versions == version
            rows = np.flatnonzero(sampled.any(axis=1))[:most]
            if version == current_version or not self._on_any_host(rows):
                continue
            logprobs = self.logprobs(params, tokens[rows], sampled[rows], _chosen(batch_lengths(batch), rows))
            difference = np.abs(logprobs - np.asarray(batch.behavior_logprobs)[rows])[sampled[rows]]
            total += Mismatch(float(difference.sum()), float(difference.max(initial=0.0)), int(difference.size))
        every = self.hosts.gather([total.total, total.maximum, total.num_tokens], "mismatch of older versions")
        return sum((Mismatch(*of_host) for of_host in every), Mismatch(0.0, 0.0, 0))

    def _on_any_host(self, rows: np.ndarray) -> bool:
        """Whether any host has rows to compute: then all must take part."""
        return any(self.hosts.gather(len(rows), "rows of an older version"))


def _chosen(lengths: Lengths, rows: np.ndarray) -> Lengths:
    return Lengths(lengths.tokens[rows], lengths.groups[rows], lengths.shared[rows])

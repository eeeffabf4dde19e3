"""The model on packed rows: statistics of tokens, and the loss of one microbatch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax

from learner_jax.batches import Batch
from learner_jax.contracts import ModelConfig
from learner_jax.models import Decoder, Implementation, Layout, TokenStats, attention, fused_loss, merge, scored_stats
from learner_jax.models import value as value_model
from learner_jax.settings import LearnerSettings
from learner_jax.training.objective import Metrics, Objective, StepScalars
from learner_jax.training.placement import Placement
from learner_jax.training.train_step import Params

#: Most sequences in a row for cuDNN's attention, which reserves memory for each.
MAX_SEGMENTS = 64


# Compared by identity: jax.jit looks its functions up by hash.
@dataclass(frozen=True, eq=False)
class PackedModel:
    """Pure functions of parameters and rows, to be jitted.

    Attributes:
      attention: the kernel.
      max_segments: most sequences that a row may hold; None where any number will do.
      temperature: the sampler's; log-probs of the loss are taken at it.
    """

    settings: LearnerSettings
    config: ModelConfig
    placement: Placement
    attention: Implementation
    max_segments: int | None
    temperature: float

    @classmethod
    def of(
        cls, settings: LearnerSettings, config: ModelConfig, placement: Placement, *, temperature: float
    ) -> PackedModel:
        """The model with the kernel that the settings name, or that suits the platform.

        Raises:
          ValueError: the kernel can't take the shapes.
        """
        chosen = attention.attention_implementation(placement.platform, settings.compute_dtype)
        if settings.attention != "auto":
            chosen = settings.attention
        for row_tokens in settings.row_lengths:
            attention.check_supported(
                chosen,
                head_dim=config.head_dim,
                row_tokens=row_tokens,
                compute_capability=getattr(placement.mesh.devices.flat[0], "compute_capability", None),
            )
        return cls(settings, config, placement, chosen, MAX_SEGMENTS if chosen == "cudnn" else None, temperature)

    @property
    def shares_prefixes(self) -> bool:
        """Whether the kernel lets a sequence see a prompt that stands elsewhere in its row."""
        return attention.shares_prefixes(self.attention)

    def token_stats(
        self,
        params: Params,
        tokens: jax.Array,
        layout: Layout,
        scored: jax.Array,
        temperature: float,
        with_argmax: bool = False,
    ) -> TokenStats:
        """Statistics of the scored tokens of rows [R, L]."""
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
            mesh=self.placement.mesh,
        )
        return TokenStats(out.logprobs, out.entropy, out.argmax_correct, values_after)

    def loss(
        self, params: Params, batch: Batch, scalars: StepScalars, objective: Objective
    ) -> tuple[jax.Array, Metrics]:
        """A microbatch's share of the loss and of each metric; implements `MicrobatchLoss`."""
        assert batch.layout is not None
        scored = (batch.weights != 0) & (batch.layout.predecessors >= 0)
        if not objective.token_local:
            stats = self.token_stats(params, batch.tokens, batch.layout, scored, self.temperature)
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
            temperature=self.temperature,
            chunk_tokens=self.settings.logits_chunk_tokens,
            mesh=self.placement.mesh,
        )
        stats = TokenStats(out.logprobs, out.entropy, None, values_after)
        return loss, objective(stats, batch, scalars)[1]

    def _trunk(self, params: Params, tokens: jax.Array, layout: Layout) -> tuple[Decoder, jax.Array, jax.Array | None]:
        """(the policy's decoder, its activations, values after every token where there is a value function)."""
        policy, value = value_model.split_parameters(params)
        wire = partial(
            merge,
            compute_dtype=self.settings.compute_dtype,
            remat=self.settings.remat,
            attention=self.attention,
            max_segments=self.max_segments,
            activation_sharding=self.placement.rows,
        )
        rows = (layout.positions, layout.segments, layout.prefixes if self.shares_prefixes else None)
        model = wire(self.config, policy)
        hidden = model.hidden_states(tokens, *rows)
        if value is None:
            return model, hidden, None
        seen = hidden
        if "trunk" in value:
            seen = wire(value_model.trunk_config(self.config), value["trunk"]).hidden_states(tokens, *rows)
        return model, hidden, value_model.head_values(value["head"], seen)

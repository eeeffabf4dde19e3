"""What is published of a policy: its weights in the fleet's dtype, and log-probs of the golden prompts under them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.batches import Lengths, one_per_row
from learner_jax.contracts import GoldenPrompt
from learner_jax.models import attention, sharding
from learner_jax.models import value as value_model
from learner_jax.training.packed_model import PackedModel
from learner_jax.training.train_step import Params


class Publication:
    """Makes what travels to the fleet with each version."""

    def __init__(self, model: PackedModel) -> None:
        self._model = model
        self._stats = jax.jit(model.token_stats, static_argnums=(4, 5), out_shardings=model.placement.replicated)
        self._weights = jax.jit(self._cast)

    def weights(self, params: Params) -> Params:
        """A copy of the policy's parameters in the dtype that the fleet serves."""
        return self._weights(params)

    def golden_logprobs(self, published: Params, prompts: Sequence[Sequence[int]]) -> jax.Array:
        """Log-probs (temperature 1) of the golden prompts under published weights, still on the device."""
        # Rows that every mesh and kernel can take: as many as divide over the mesh, of a length that the kernel knows.
        multiple = attention.row_multiple(self._model.attention)
        width = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        packing = one_per_row(Lengths.of([len(prompt) for prompt in prompts]), width=width, row_tokens=width)
        plan = packing.plan(sharding.num_row_shards(self._model.placement.mesh))
        scored = plan.layout.predecessors >= 0
        return self._stats(published, plan.pack(tokens), plan.layout, scored, 1.0, False).logprobs

    def _cast(self, params: Params) -> Params:
        dtype = jnp.dtype(self._model.settings.publish_dtype)
        return jax.tree.map(lambda x: x.astype(dtype), value_model.split_parameters(params)[0])


def golden_prompts(logprobs: jax.Array, prompts: Sequence[Sequence[int]]) -> list[GoldenPrompt]:
    """The learner's own log-probs of the golden prompts, from `golden_logprobs`, as they travel with the weights."""
    values = np.asarray(logprobs)
    return [
        GoldenPrompt(tokens=list(prompt), logprobs=[float(x) for x in values[row, 1 : len(prompt)]])
        for row, prompt in enumerate(prompts)
    ]

"""A sampler in the learner's own process, so that a study can hold staleness exactly and repeat bit by bit.

It computes what vLLM computes (the tests compare the learner's log-probs with vLLM's), only slower: every token runs
the whole row again. Runs use vLLM; a study needs batches of one exact age, which a running fleet cannot promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from learner_jax.contracts import ModelConfig
from learner_jax.models import Params, merge


class Sampler:
    """Samples one turn for many rows at temperature 1.

    Args:
      max_tokens: tokens per turn, the end token included.
    """

    def __init__(self, config: ModelConfig, *, max_tokens: int, eos_id: int):
        self._max_tokens = max_tokens
        self._sample = jax.jit(partial(_sample_turn, config, max_tokens, eos_id))

    def turn(
        self, params: Params, contexts: Sequence[Sequence[int]], *, width: int, key: Array
    ) -> list[tuple[list[int], list[float]]]:
        """Continues every context until its end token or `max_tokens`; returns (token ids, log-probs in nats).

        Args:
          width: row length that all contexts and answers fit in; one compilation per width and number of rows.
        """
        tokens = np.zeros((len(contexts), width), np.int32)
        lengths = np.array([len(context) for context in contexts], np.int32)
        for row, context in enumerate(contexts):
            tokens[row, : len(context)] = context
        sampled, logprobs, ends = (np.asarray(x) for x in self._sample(params, tokens, lengths, key))
        return [
            (sampled[row, start:end].tolist(), logprobs[row, start:end].tolist())
            for row, (start, end) in enumerate(zip(lengths, ends, strict=True))
        ]


def _sample_turn(
    config: ModelConfig, max_tokens: int, eos_id: int, params: Params, tokens: Array, lengths: Array, key: Array
) -> tuple[Int[Array, "B T"], Float[Array, "B T"], Int[Array, "B"]]:
    """(tokens with the answers written in, their log-probs in place, length of every row)."""
    model = merge(config, params)
    rows = jnp.arange(tokens.shape[0])

    def one(step: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        tokens, logprobs, ends, running = carry
        hidden = model.hidden_states(tokens)[rows, ends - 1]
        log_p = jax.nn.log_softmax(model.logits(hidden[:, None])[:, 0])
        chosen = jax.random.categorical(jax.random.fold_in(key, step), log_p).astype(tokens.dtype)
        tokens = tokens.at[rows, ends].set(jnp.where(running, chosen, tokens[rows, ends]))
        logprobs = logprobs.at[rows, ends].set(jnp.where(running, log_p[rows, chosen], logprobs[rows, ends]))
        return tokens, logprobs, ends + running, running & (chosen != eos_id)

    start = (tokens, jnp.zeros(tokens.shape), lengths, jnp.ones(tokens.shape[0], bool))
    tokens, logprobs, ends, _ = jax.lax.fori_loop(0, max_tokens, one, start)
    return tokens, logprobs, ends

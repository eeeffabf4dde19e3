"""A sampler in the learner's own process, so that a study can hold staleness exactly and repeat bit by bit.

It computes what vLLM computes (the tests compare the learner's log-probs with vLLM's), only slower: every token runs
the whole row again. Runs use vLLM; a study needs batches of one exact age, which a running fleet cannot promise.
`Sampler` stays on the device. `GroupSampler` runs a context once however many answers have it.
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


class GroupSampler:
    """Samples answers to prompts that many rows share, at temperature 1; arguments as of `Sampler`.

    The answers to one prompt begin alike, so that few contexts are distinct.
    """

    def __init__(self, config: ModelConfig, *, max_tokens: int, eos_id: int):
        self._max_tokens, self._eos_id = max_tokens, eos_id
        self._next = jax.jit(partial(_next_logprobs, config))

    def turn(
        self, params: Params, contexts: Sequence[Sequence[int]], *, width: int, rng: np.random.Generator
    ) -> list[tuple[list[int], list[float]]]:
        """Continues every context until its end token or `max_tokens`; returns (token ids, log-probs in nats).

        Args:
          width: row length that all contexts and answers fit in; one compilation per number of distinct contexts,
            rounded up to `_CONTEXTS`.
        """
        answers: list[tuple[list[int], list[float]]] = [([], []) for _ in contexts]
        running = list(range(len(contexts)))
        for _ in range(self._max_tokens):
            numbers: dict[tuple[int, ...], int] = {}
            places = [numbers.setdefault((*contexts[row], *answers[row][0]), len(numbers)) for row in running]
            log_p = self._logprobs(params, list(numbers), width)[places]
            # The Gumbel-max trick draws from softmax(log_p).
            chosen = np.argmax(log_p + rng.gumbel(size=log_p.shape), axis=1).tolist()
            for row, token, of_row in zip(running, chosen, log_p, strict=True):
                answers[row][0].append(token)
                answers[row][1].append(float(of_row[token]))
            running = [row for row, token in zip(running, chosen, strict=True) if token != self._eos_id]
            if not running:
                break
        return answers

    def _logprobs(self, params: Params, contexts: Sequence[tuple[int, ...]], width: int) -> Float[np.ndarray, "C V"]:
        number = -(-len(contexts) // _CONTEXTS) * _CONTEXTS
        tokens, lengths = np.zeros((number, width), np.int32), np.ones(number, np.int32)
        for row, context in enumerate(contexts):
            tokens[row, : len(context)] = context
            lengths[row] = len(context)
        return np.asarray(self._next(params, tokens, lengths))[: len(contexts)]


#: contexts are run in multiples of this
_CONTEXTS = 64


def _next_logprobs(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B V"]:
    """Log-probs of the token after each context, nats."""
    model = merge(config, params)
    hidden = model.hidden_states(tokens)[jnp.arange(tokens.shape[0]), lengths - 1]
    return jax.nn.log_softmax(model.logits(hidden[:, None])[:, 0])


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

"""Batches of examples that were not sampled: cross-entropy, and pairs of a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from learner_jax.batches.batch import Batch, batch_lengths, on_host
from learner_jax.batches.rows import Lengths
from learner_jax.batches.sequences import BatchError, Reference, Sequences, padded
from learner_jax.contracts import NOT_SAMPLED
from learner_jax.losses import loss_weights

#: (tokens, loss mask) of one supervised example
Example = tuple[Sequence[int], Sequence[bool]]


def supervised_batch(examples: Sequence[Example], *, sequence_length: int, reduction: str = "token_mean") -> Batch:
    """Builds a batch for cross-entropy from (tokens, loss mask) pairs.

    Raises:
      BatchError: an example is longer than `sequence_length`.
    """
    longest = max(len(tokens) for tokens, _ in examples)
    if longest > sequence_length:
        raise BatchError(
            f"a supervised example has {longest} tokens, rows hold {sequence_length}: raise learner.sequence_length"
        )
    mask = padded([np.asarray(m) for _, m in examples], sequence_length, np.bool_)
    zeros: Any = np.zeros(mask.shape, np.float32)
    lengths = Lengths.of([len(tokens) for tokens, _ in examples])
    return Batch(
        tokens=padded([np.asarray(tokens) for tokens, _ in examples], sequence_length, np.int32),
        weights=on_host(loss_weights(mask, reduction=reduction)),
        advantages=zeros,
        behavior_logprobs=zeros,
        policy_version=on_host(np.full(mask.shape, NOT_SAMPLED, np.int32)),
        lengths=on_host(lengths.tokens),
        groups=on_host(lengths.groups),
        shared=on_host(lengths.shared),
    )


def preference_batch(
    pairs: Sequence[tuple[Example, Example]],
    *,
    sequence_length: int,
    reference: Reference | None = None,
) -> Batch:
    """Builds a batch for DPO or Bradley-Terry: rows 2i and 2i + 1 are the chosen and the rejected answer of pair i.

    Args:
      reference: log-probs of the frozen reference; DPO needs it.
    Raises:
      BatchError: an example is longer than `sequence_length`, or has no token to score.
    """
    rows = [example for pair in pairs for example in pair]
    for index, (_, mask) in enumerate(rows):
        if not any(mask):
            raise BatchError(
                f"the {'rejected' if index % 2 else 'chosen'} answer of pair {index // 2} has no token in its loss mask"
            )
    batch = supervised_batch(rows, sequence_length=sequence_length, reduction="sequence_mean")
    return batch if reference is None else with_reference(batch, reference)


def with_reference(batch: Batch, reference: Reference) -> Batch:
    """The batch with the log-probs of its tokens under a frozen reference."""
    given = Sequences(np.asarray(batch.tokens), np.asarray(batch.weights) > 0, batch_lengths(batch))
    return replace(batch, reference_logprobs=on_host(reference(given)))

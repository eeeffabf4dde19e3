"""Tokens that older versions sampled, computed again under those versions' weights while these are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from learner_jax.batches import Batch, Lengths, batch_lengths
from learner_jax.hosts import Hosts
from learner_jax.settings import LearnerSettings
from learner_jax.training.microbatches import PlannedBatch
from learner_jax.training.statistics import Statistics
from learner_jax.training.train_step import Params


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


class Lagging:
    """Compares sampler and trainer on tokens that lag.

    Tokens of the current version are left out everywhere: the train step computes those itself.

    Args:
      hosts: that hold the other parts of each batch; all must call, in the same order.
    """

    def __init__(self, settings: LearnerSettings, statistics: Statistics, hosts: Hosts) -> None:
        self._settings, self._statistics, self._hosts = settings, statistics, hosts

    def logprobs(self, batch: Batch, published: Mapping[int, Params], *, current_version: int) -> np.ndarray:
        """The trainer's own log-probs float32[B, T] of tokens of older versions, under those versions' weights.

        Tokens of other versions than those of `published` keep the sampler's.
        """
        logprobs = np.array(batch.behavior_logprobs)
        versions = np.asarray(batch.policy_version)
        for version, params in published.items():
            sampled = versions == version
            (rows,) = np.nonzero(sampled.any(axis=1))
            if version == current_version or not self._on_any_host(rows):
                continue
            logprobs[rows] = np.where(sampled[rows], self._recomputed(batch, params, rows, sampled), logprobs[rows])
        return logprobs

    def prepared(self, planned: PlannedBatch, published: Mapping[int, Params], *, current_version: int) -> PlannedBatch:
        """Adds these log-probs to a batch, where the settings correct lagging tokens for the mismatch."""
        if not self._settings.loss.mismatch.lagging:
            return planned
        trainer = self.logprobs(planned.batch, published, current_version=current_version)
        return planned.with_fields(trainer_logprobs=jnp.asarray(trainer))

    def mismatch(self, batch: Batch, published: Mapping[int, Params], *, current_version: int) -> Mismatch:
        """How far sampler and trainer are apart on tokens of the versions of `published`, on all hosts.

        At most `mismatch_rows` sequences per version are computed.
        """
        total = Mismatch(0.0, 0.0, 0)
        most = -(-self._settings.mismatch_rows // self._hosts.count)
        versions = np.asarray(batch.policy_version)
        for version, params in published.items():
            sampled = versions == version
            rows = np.flatnonzero(sampled.any(axis=1))[:most]
            if version == current_version or not self._on_any_host(rows):
                continue
            logprobs = self._recomputed(batch, params, rows, sampled)
            difference = np.abs(logprobs - np.asarray(batch.behavior_logprobs)[rows])[sampled[rows]]
            total += Mismatch(float(difference.sum()), float(difference.max(initial=0.0)), int(difference.size))
        every = self._hosts.gather([total.total, total.maximum, total.num_tokens], "mismatch of older versions")
        return sum((Mismatch(*of_host) for of_host in every), Mismatch(0.0, 0.0, 0))

    def _recomputed(self, batch: Batch, params: Params, rows: np.ndarray, sampled: np.ndarray) -> np.ndarray:
        """Log-probs of the sampled tokens of some sequences."""
        every = batch_lengths(batch)
        lengths = Lengths(every.tokens[rows], every.groups[rows], every.shared[rows])
        return self._statistics.logprobs(params, np.asarray(batch.tokens)[rows], sampled[rows], lengths)

    def _on_any_host(self, rows: np.ndarray) -> bool:
        """Whether any host has rows to compute: then all must take part."""
        return any(self._hosts.gather(len(rows), "rows of an older version"))

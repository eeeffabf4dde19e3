"""From a batch on the host to microbatches on the devices: sequences are packed into rows once, rows sent ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from learner_jax.batches import Batch, Lengths, Packing, Plan, batch_lengths, one_per_row, pack_rows, packed
from learner_jax.contracts import ModelConfig
from learner_jax.hosts import Hosts
from learner_jax.models import flops
from learner_jax.settings import LearnerSettings
from learner_jax.training.packed_model import PackedModel
from learner_jax.training.placement import Placement


@dataclass(frozen=True)
class PlannedBatch:
    """A batch on the host, and how its sequences are packed into rows.

    Attributes:
      packing: packs them when it is first called; the same for all batches that `with_fields` made of one.
    """

    batch: Batch
    packing: Callable[[], Packing]

    def with_fields(self, **fields: Any) -> PlannedBatch:
        """The batch with some of its arrays [B, T] replaced; its sequences are the same."""
        return replace(self, batch=replace(self.batch, **fields))


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


class Microbatches:
    """Lays batches into rows of the lengths that programs are compiled for, and moves them to the devices.

    Args:
      packs: whether rows may hold several sequences.
      hosts: that hold the other parts of each batch; all of them lay out as many rows.
    """

    def __init__(
        self, settings: LearnerSettings, model_config: ModelConfig, model: PackedModel, hosts: Hosts, *, packs: bool
    ) -> None:
        self._settings, self._model_config, self._hosts = settings, model_config, hosts
        self._placement: Placement = model.placement
        self._max_segments = model.max_segments
        self._may_share = settings.share_prompts == "auto" and model.shares_prefixes
        self._packs = packs

    def packing(self, lengths: Lengths, width: int) -> Packing:
        """How sequences of these lengths, padded to `width` tokens on the host, fit into rows.

        Raises:
          PackingError: one is longer than the longest row.
        """
        settings = self._settings
        gather = partial(self._hosts.gather, what="rows that a batch needs")
        if not self._packs:
            return one_per_row(lengths, width=width, row_tokens=max(settings.row_lengths), gather=gather)
        return pack_rows(
            lengths,
            width=width,
            row_lengths=settings.row_lengths,
            may_share=self._may_share,
            max_segments=self._max_segments,
            attention_weight=flops.attention_weight(self._model_config),
            gather=gather,
        )

    def planned(self, batch: Batch) -> PlannedBatch:
        """The batch, whose sequences are packed once, however often its rows are needed."""
        return PlannedBatch(batch, cache(partial(self.packing, batch_lengths(batch), batch.tokens.shape[1])))

    def parts(self, whole: PlannedBatch, sizes: Sequence[int]) -> Iterator[PlannedBatch]:
        """Consecutive sequences of a batch, so many in each part; a batch in one part keeps its packing."""
        if len(sizes) == 1:
            yield whole
            return
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            yield self.planned(jax.tree.map(lambda x: x[end - size : end], whole.batch))  # noqa: B023

    def pack(self, batch: Batch | PlannedBatch) -> PackedBatch:
        """Lays a batch into rows of whole microbatches and moves the first one to the devices.

        Raises:
          PackingError: a sequence is longer than the longest row.
        """
        planned = self.planned(batch) if isinstance(batch, Batch) else batch
        plan = planned.packing().plan(self._placement.own_rows)
        rows = packed(planned.batch, plan)
        num_scored = int(np.count_nonzero(rows.weights))
        model_flops = flops.train_step_flops(self._model_config, plan.layout, num_scored)
        first = self._placement.put_rows(rows, 0, self._placement.own_rows)
        jax.block_until_ready(first)
        return PackedBatch(rows, plan, first, model_flops)

    def of(self, whole: PackedBatch) -> Iterator[Batch]:
        """The microbatches of a packed batch, on the devices."""
        return self.transferred(whole.rows, whole.plan.num_rows, self._placement.own_rows, whole.first)

    def transferred(self, rows: Any, num_rows: int, size: int, first: Any = None) -> Iterator[Any]:
        """`size` rows at a time on the devices, the next ones on their way while some are used.

        Args:
          rows: arrays of `num_rows` rows, in a pytree.
          first: the first `size` of them, where those are on the devices already.
        """
        put = self._placement.put_rows
        ahead = put(rows, 0, size) if first is None else first
        for start in range(size, num_rows, size):
            current, ahead = ahead, put(rows, start, size)
            yield current
        yield ahead

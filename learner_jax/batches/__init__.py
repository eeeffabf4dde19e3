"""From trajectories to the arrays of one train step."""

from learner_jax.batches.building import (
    Batch,
    BatchStats,
    Episodes,
    Example,
    Reference,
    Sequences,
    abstract_batch,
    batch_lengths,
    packed,
    rl_batch,
    sequences,
    supervised_batch,
)
from learner_jax.batches.packing import Lengths, Plan, one_per_row, plan_rows

__all__ = [
    "Batch",
    "BatchStats",
    "Episodes",
    "Example",
    "Lengths",
    "Plan",
    "Reference",
    "Sequences",
    "abstract_batch",
    "batch_lengths",
    "one_per_row",
    "packed",
    "plan_rows",
    "rl_batch",
    "sequences",
    "supervised_batch",
]

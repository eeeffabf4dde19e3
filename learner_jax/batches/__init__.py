"""From trajectories to the arrays of one train step."""

from learner_jax.batches.batch import Batch, Episodes, abstract_batch, batch_lengths, packed
from learner_jax.batches.batch_stats import BatchStats
from learner_jax.batches.building import rl_batch
from learner_jax.batches.packing import Packing, Plan, one_per_row, pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.batches.sequences import Reference, Sequences, sequences
from learner_jax.batches.supervised import Example, supervised_batch

__all__ = [
    "Batch",
    "BatchStats",
    "Episodes",
    "Example",
    "Lengths",
    "Packing",
    "Plan",
    "Reference",
    "Sequences",
    "abstract_batch",
    "batch_lengths",
    "one_per_row",
    "pack_rows",
    "packed",
    "rl_batch",
    "sequences",
    "supervised_batch",
]

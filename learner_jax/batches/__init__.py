"""From trajectories to the arrays of one train step."""

from learner_jax.batches.batch import Batch, Episodes, abstract_batch, batch_lengths, packed
from learner_jax.batches.batch_stats import BatchStats
from learner_jax.batches.building import rl_batch
from learner_jax.batches.example_files import ExampleFiles, write_examples
from learner_jax.batches.example_stream import ExampleStream, Pairs, RandomAccess
from learner_jax.batches.packing import Packing, Plan, one_per_row, pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.batches.sequences import BatchError, Reference, Sequences, sequences
from learner_jax.batches.supervised import Example, preference_batch, supervised_batch, with_reference

__all__ = [
    "Batch",
    "BatchError",
    "BatchStats",
    "Episodes",
    "Example",
    "ExampleFiles",
    "ExampleStream",
    "Lengths",
    "Packing",
    "Pairs",
    "Plan",
    "RandomAccess",
    "Reference",
    "Sequences",
    "abstract_batch",
    "batch_lengths",
    "one_per_row",
    "pack_rows",
    "packed",
    "preference_batch",
    "rl_batch",
    "sequences",
    "supervised_batch",
    "with_reference",
    "write_examples",
]

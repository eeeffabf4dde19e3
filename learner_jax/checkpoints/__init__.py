"""Checkpoints: written whole or not at all, proven before anything relies on them."""

from learner_jax.checkpoints.arrays import TREE
from learner_jax.checkpoints.checkpoints import Checkpoints, restore_parameters
from learner_jax.checkpoints.folder import Found, find_checkpoint, require_whole, steps_in
from learner_jax.checkpoints.hashes import HASHES, write_hashes
from learner_jax.checkpoints.lives import next_life, oust
from learner_jax.checkpoints.manifest import (
    CHECKPOINT_SCHEMA,
    ITEM,
    CheckpointError,
    Manifest,
    array_specs,
    read_manifest,
)
from learner_jax.checkpoints.proof import prove, settle
from learner_jax.contracts import Position

__all__ = [
    "CHECKPOINT_SCHEMA",
    "HASHES",
    "ITEM",
    "TREE",
    "CheckpointError",
    "Checkpoints",
    "Found",
    "Manifest",
    "Position",
    "array_specs",
    "find_checkpoint",
    "next_life",
    "oust",
    "prove",
    "read_manifest",
    "require_whole",
    "restore_parameters",
    "settle",
    "steps_in",
    "write_hashes",
]

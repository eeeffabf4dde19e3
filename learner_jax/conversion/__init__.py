"""Checkpoints to model folders and back, in pieces."""

from learner_jax.conversion.checkpoint_reader import cut
from learner_jax.conversion.convert import ConversionError, Verification, Watch, from_hf, to_hf, verify

__all__ = ["ConversionError", "Verification", "Watch", "cut", "from_hf", "to_hf", "verify"]

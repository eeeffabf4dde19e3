"""Checkpoints to model folders and back, in pieces."""

from learner_jax.conversion.checkpoint_reader import cut
from learner_jax.conversion.convert import ConversionError, Verification, Watch, from_hf, to_hf, verify
from learner_jax.conversion.gguf_folder import from_gguf

__all__ = ["ConversionError", "Verification", "Watch", "cut", "from_gguf", "from_hf", "to_hf", "verify"]

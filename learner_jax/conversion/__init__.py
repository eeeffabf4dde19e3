"""Checkpoints to model folders and back, in pieces."""

from learner_jax.conversion.checkpoint_reader import cut
from learner_jax.conversion.compare import folder_golden
from learner_jax.conversion.convert import ConversionError, Verification, Watch, from_hf, to_hf, verify
from learner_jax.conversion.gguf_folder import from_gguf
from learner_jax.models import COMPANION_FILES

__all__ = [
    "COMPANION_FILES",
    "ConversionError",
    "Verification",
    "Watch",
    "cut",
    "folder_golden",
    "from_gguf",
    "from_hf",
    "to_hf",
    "verify",
]

"""A random small model that speaks ChatML, with the tokenizer of `session_world`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def write_model(folder: Path, tokenizer: Any) -> None:
    """A random small model that speaks ChatML."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).float().eval().save_pretrained(folder)
    for path in Path(tokenizer.model_dir).iterdir():
        shutil.copy(path, folder / path.name)

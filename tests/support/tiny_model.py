"""A decoder small enough to train within a test."""

from __future__ import annotations

from learner_jax.contracts.model import parse_model_config

TINY_JSON = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


TINY = parse_model_config(TINY_JSON, origin="test")

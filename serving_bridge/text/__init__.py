"""Text to token ids and back, as transformers has it."""

from serving_bridge.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]

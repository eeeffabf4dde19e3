"""Text to token ids and back, as transformers has it."""

from serving_bridge.text.tokenizer import Tokenizer, load_tokenizer
from serving_bridge.text.tokenizer_files import TokenizerError

__all__ = ["Tokenizer", "TokenizerError", "load_tokenizer"]

"""Text to token ids and back, as transformers has it."""

from serving_bridge.text.refusals import REFUSALS
from serving_bridge.text.tokenizer import Tokenizer, load_tokenizer
from serving_bridge.text.tokenizer_files import TokenizerError

__all__ = ["REFUSALS", "Tokenizer", "TokenizerError", "load_tokenizer"]

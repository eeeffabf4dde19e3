"""The tokenizer classes of transformers that are built here, and which of them AutoTokenizer takes for a folder.

Some classes take only vocabulary and merges from tokenizer.json and bring normalizer, pre-tokenizer and decoder along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from serving_bridge.text.tokenizer_files import TokenizerError, TokenizerFiles


@dataclass(frozen=True)
class TokenizerClass:
    """One of transformers' tokenizer classes.

    Attributes:
      build: from the BPE vocabulary, its merges and tokenizer_config.json; None takes tokenizer.json as it is.
      defaults: special tokens of folders that do not name them; None where the class insists on none.
      repeats: whether the class adds all special tokens once more, as special.
    """

    build: Callable[[dict[str, int], list[tuple[str, str]], Mapping[str, Any]], tokenizers.Tokenizer] | None = None
    defaults: Mapping[str, str | None] = field(default_factory=dict)
    repeats: bool = False


_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END = "<|endoftext|>"


def _qwen2(vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    model = models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    built = tokenizers.Tokenizer(model)
    built.decoder = decoders.ByteLevel()
    built.normalizer = normalizers.NFC()
    prefix = bool(config.get("add_prefix_space"))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_PIECES), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    return built


def _gpt2(vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    model = models.BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    built.decoder = decoders.ByteLevel()
    return built


def _llama(vocab: dict[str, int], merges: list[tuple[str, str]], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True))
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = ("always" if config.get("legacy", False) else "first") if prefix else "never"
    built.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return built


_AS_IT_IS = TokenizerClass()
CLASSES: Mapping[str, TokenizerClass] = {
    "PreTrainedTokenizer": _AS_IT_IS,
    "TokenizersBackend": _AS_IT_IS,
    "PythonBackend": _AS_IT_IS,
    "Qwen2Tokenizer": TokenizerClass(
        _qwen2, dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END), repeats=True
    ),
    "GPT2Tokenizer": TokenizerClass(
        _gpt2, dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END) | {"pad_token": None}
    ),
    "LlamaTokenizer": TokenizerClass(_llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
}
#: model_type -> class of folders that name none.
_OF_MODEL = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
#: model_type whose folders often name a wrong class; transformers takes its own.
_OVERRULED = ("qwen2",)


def tokenizer_class(files: TokenizerFiles) -> TokenizerClass:
    """The class that AutoTokenizer takes; raises `TokenizerError` for one whose tokens would not be ours."""
    model_type = files.model.get("model_type")
    named = files.config.get("tokenizer_class") or files.model.get("tokenizer_class")
    of_model = _OF_MODEL.get(model_type) if isinstance(model_type, str) else None
    if named is None or (of_model is not None and model_type in _OVERRULED):
        return CLASSES[of_model or "TokenizersBackend"]
    known = CLASSES.get(named.removesuffix("Fast")) if isinstance(named, str) else None
    if known is None:
        file = "tokenizer_config.json" if files.config.get("tokenizer_class") else "config.json"
        raise TokenizerError(
            f"{files.folder / file}: tokenizer_class is {named!r}, expected one of {', '.join(CLASSES)}; "
            f"PreTrainedTokenizerFast takes tokenizer.json as it is"
        )
    return known

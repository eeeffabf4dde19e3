"""Special tokens and tokenizer classes of any folder: as transformers has them, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.text.tokenizer import TokenizerError, load_tokenizer
from tests.support.trained_tokenizers import LLAMA, QWEN2, QWEN3, SPECIAL, write
from tests.support.trained_tokenizers import bases as bases
from tests.support.trained_tokenizers import quiet as quiet

TEXTS = [
    "a",
    "hello world 1234 it's  two",
    "<s>hello</s> <|im_end|>\n<|im_end|> x<pad>y <|endoftext|>",
    " lead <extra> <word>s <Extra> trail ",
    "naïve café ﬁ e\u0301 東京",
]


def token(content: str, **flags: Any) -> dict[str, Any]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return plain | {"content": content} | flags


def typed(content: str, **flags: Any) -> dict[str, Any]:
    return {"__type": "AddedToken"} | token(content, **flags)


def without_added(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in names]

    return change


def without_post_processor(content: dict[str, Any]) -> None:
    content["post_processor"] = None


def saved_limits(content: dict[str, Any]) -> None:
    content["truncation"] = {"max_length": 3, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 5,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }


#: added_tokens_decoder as transformers 4 wrote it
DECODER = {str(i): token(text) for i, text in enumerate(SPECIAL)}


SPLIT_ADDED = {"<s>": 1, "</s>": 2, "<|im_end|>": 3}


#: name -> (base, files by name, change of tokenizer.json)
Folder = tuple[str, dict[str, Any], Callable[[dict[str, Any]], None] | None]


SOUND: dict[str, Folder] = {
    "plain": ("bytes", {"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}, "config": LLAMA}, None),
    "no files but ends": ("bytes", {"generation_config": {"eos_token_id": 2}, "config": LLAMA}, None),
    "typed": ("bytes", {"tokenizer_config": {"eos_token": typed("</s>"), "pad_token": typed("<pad>")}}, None),
    "map only": ("bytes", {"special_tokens_map": {"eos_token": "</s>", "bos_token": token("<s>")}}, None),
    "map over config": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<|im_end|>"}},
        None,
    ),
    "decoder hides map": (
        "bytes",
        {
            "tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": DECODER},
            "special_tokens_map": {"eos_token": "<|im_end|>"},
        },
        None,
    ),
    "not in tokenizer.json": (
        "bytes",
        {"tokenizer_config": {"eos_token": "<|im_end|>", "extra_special_tokens": ["<pad>"]}},
        without_added("<|im_end|>", "<pad>", "<extra>", "<word>"),
    ),
    "only in added_tokens.json": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>"}, "added_tokens": SPLIT_ADDED},
        without_added("<s>", "</s>", "<|im_end|>", "<extra>", "<word>"),
    ),
    "only in the decoder": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": DECODER}},
        without_added(*SPECIAL, "<extra>", "<word>"),
    ),
    "decoder with other flags": (
        "bytes",
        {
            "tokenizer_config": {
                "eos_token": "</s>",
                "added_tokens_decoder": DECODER
                | {
                    "3": token("<|im_end|>", lstrip=True, rstrip=True, special=False),
                    "5": token("<pad>", special=False),
                },
            }
        },
        None,
    ),
    "decoder of new flags": (
        "bytes",
        {
            "tokenizer_config": {
                "eos_token": "</s>",
                "added_tokens_decoder": {"2": token("</s>"), "3": token("<|im_end|>", lstrip=True, special=False)},
            }
        },
        without_added(*SPECIAL, "<extra>", "<word>"),
    ),
    "named makes special": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "pad_token": "<extra>", "image_token": "<word>"}},
        None,
    ),
    "old name of extras": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>", typed("<pad>")]}},
        without_added("<|im_end|>", "<pad>", "<extra>", "<word>"),
    ),
    "extras by name": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "extra_special_tokens": {"image": "<|im_end|>"}}},
        without_added("<|im_end|>", "<extra>", "<word>"),
    ),
    "extras in the map": (
        "bytes",
        {"special_tokens_map": {"eos_token": "</s>", "additional_special_tokens": ["<|im_end|>"]}},
        without_added("<|im_end|>", "<extra>", "<word>"),
    ),
    "new tokens": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "pad_token": "[PAD]", "mask_token": "[M]", "x_token": "[X]"}},
        None,
    ),
    "null tokens": ("bytes", {"tokenizer_config": {"eos_token": "</s>", "bos_token": None, "pad_token": None}}, None),
    "bos flags are ignored": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": False, "add_eos_token": True}},
        None,
    ),
    "no post-processor": (
        "bytes",
        {"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True}},
        without_post_processor,
    ),
    "limits": ("bytes", {"tokenizer_config": {"eos_token": "</s>", "model_max_length": 3}}, saved_limits),
    "split special": ("bytes", {"tokenizer_config": {"eos_token": "</s>", "split_special_tokens": True}}, None),
    "clean up": ("bytes", {"tokenizer_config": {"eos_token": "</s>", "clean_up_tokenization_spaces": True}}, None),
    "qwen2 by model": ("bytes", {"config": QWEN2}, None),
    "qwen2 overrules": (
        "split",
        {
            "config": QWEN2,
            "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
        },
        None,
    ),
    "qwen3 by model": ("split", {"config": QWEN3, "tokenizer_config": {"eos_token": "<|im_end|>"}}, None),
    "qwen3 as it is": (
        "split",
        {"config": QWEN3, "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}},
        None,
    ),
    "qwen3 prefix": (
        "bytes",
        {
            "config": QWEN3,
            "tokenizer_config": {"tokenizer_class": "Qwen2TokenizerFast", "add_prefix_space": True, "bos_token": None},
        },
        None,
    ),
    "qwen with a decoder of few": (
        "bytes",
        {"config": QWEN3, "tokenizer_config": {"added_tokens_decoder": {"4": token("<|endoftext|>")}}},
        None,
    ),
    "gpt2": ("split", {"config": LLAMA, "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}, None),
    "gpt2 named": (
        "bytes",
        {
            "config": LLAMA,
            "tokenizer_config": {
                "tokenizer_class": "GPT2TokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<pad>",
            },
        },
        None,
    ),
    "class in config.json": ("split", {"config": LLAMA | {"tokenizer_class": "GPT2Tokenizer"}}, None),
    "llama as it is": ("llama", {"config": LLAMA, "tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}}, None),
    "llama": ("llama", {"config": LLAMA, "tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast"}}, None),
    "llama legacy": (
        "llama",
        {"config": LLAMA, "tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": True}},
        None,
    ),
    "llama without prefix": (
        "llama",
        {"config": LLAMA, "tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}},
        None,
    ),
    "qwen3 with a llama tokenizer": (
        "llama",
        {"config": QWEN3, "tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}},
        None,
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_tokens_are_those_of_transformers(name: str, bases: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    kind, files, change = SOUND[name]
    folder = write(tmp_path / "model", bases[kind], files, change)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.backend.get_vocab(with_added_tokens=True) == theirs.get_vocab()
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours._plain_ids(text) == ids, text
        assert ours.encode(text) == theirs.encode(text)
        for skip in (True, False):
            assert ours.backend.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert ours.decode([*ids, *range(7)]) == theirs.decode([*ids, *range(7)], skip_special_tokens=True)
    if theirs.eos_token_id is not None:
        assert theirs.eos_token_id in ours.eos_ids
    if theirs.pad_token_id is not None:
        assert ours.pad_id == theirs.pad_token_id


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no end": (
        {"config": QWEN2 | {"model_type": "other"}},
        "names no end token; add eos_token_id to generation_config",
    ),
    "plain dict": ({"tokenizer_config": {"eos_token": {"content": "</s>"}}}, "eos_token is .*expected a text or a ser"),
    "id as a text": ({"generation_config": {"eos_token_id": "2"}}, "generation_config.json: eos_token_id is '2'"),
    "id as a bool": ({"generation_config": {"eos_token_id": [True]}}, "generation_config.json: eos_token_id is"),
    "ids of config": ({"config": QWEN3 | {"eos_token_id": 2.0}}, "config.json: eos_token_id is 2.0"),
    "unknown class": ({"tokenizer_config": {"tokenizer_class": "BertTokenizerFast"}}, "tokenizer_class is 'BertTok"),
    "code": ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, "auto_map is not supported"),
    "versions": ({"tokenizer_config": {"fast_tokenizer_files": ["tokenizer.5.json"]}}, "fast_tokenizer_files is not"),
    "other ids": (
        {"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"9": token("</s>")}}},
        "tokenizer_config.json: added_tokens_decoder says that '</s>' is token 9, but it becomes 2",
    ),
    "other added ids": (
        {"tokenizer_config": {"eos_token": "</s>"}, "added_tokens": {"[NEW]": 5000}},
        r"added_tokens.json says that '\[NEW\]' is token 5000",
    ),
    "bad decoder": ({"tokenizer_config": {"added_tokens_decoder": {"2": "</s>"}}}, "special tokens of .* are damaged"),
    "bad decoder id": ({"tokenizer_config": {"added_tokens_decoder": {"x": token("</s>")}}}, "are damaged"),
    "extras": ({"tokenizer_config": {"extra_special_tokens": [3]}}, "extra_special_tokens must be a list of tokens"),
    "map": ({"special_tokens_map": "[1]"}, "special_tokens_map.json holds a list, expected an object"),
    "added": ({"added_tokens": "{"}, "added_tokens.json is not valid JSON"),
    "deep": ({"tokenizer_config": "[" * 100_000}, "tokenizer_config.json is not valid JSON"),
    "generation": (
        {"generation_config": "\udcff".encode("utf-8", "surrogateescape").decode("latin1")},
        "not valid JSON",
    ),
    "template type": ({"tokenizer_config": {"eos_token": "</s>", "chat_template": 3}}, "chat template is a int"),
    "template list": (
        {"tokenizer_config": {"eos_token": "</s>", "chat_template": [{"name": "a"}]}},
        "chat_template is",
    ),
    "no default": (
        {"tokenizer_config": {"eos_token": "</s>", "chat_template": [{"name": "rag", "template": "x"}]}},
        "has chat templates named 'rag', expected one named default",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str, bases: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    files, message = REFUSED[name]
    folder = write(tmp_path / "model", bases["bytes"], files)
    with pytest.raises(TokenizerError, match=message) as raised:
        load_tokenizer(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tiktoken.model"])
def test_folders_without_tokenizer_json_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist; model\.path must be"):
        load_tokenizer(tmp_path)

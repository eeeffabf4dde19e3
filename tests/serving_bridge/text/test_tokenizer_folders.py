"""Special tokens of any file, tokenizer classes, ends and templates: as transformers has them, or refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from serving_bridge.text.tokenizer import TokenizerError, load_tokenizer
from tests.conftest import REPOSITORY

TEXTS = [
    "a",
    "hello world 1234 it's  two",
    "<s>hello</s> <|im_end|>\n<|im_end|> x<pad>y <|endoftext|>",
    " lead <extra> <word>s <Extra> trail ",
    "naïve café ﬁ e\u0301 東京",
]
CORPUS = ["hello world it's two too 1234", "trail lead a b c d e f", "naïve café"] * 20
#: in the vocabulary before it is trained, so that their ids are 0 to 5
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|endoftext|>", "<pad>"]
ADDED = ["<extra>", "<word>"]
CHATML = "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>\n' }}{% endfor %}"
EOS_AFTER = "{% for m in messages %}{{ bos_token }}{{ m.role }} {{ m.content }} {{ eos_token }}{% endfor %}"


def trained(kind: str) -> dict[str, Any]:
    """tokenizer.json of a small BPE of one of three kinds."""
    made = Tokenizer(models.BPE(unk_token=None))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "llama":
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    else:
        steps = [pre_tokenizers.Split(Regex(r"\d| ?\w+"), behavior="isolated")] if kind == "split" else []
        made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        made.decoder = decoders.ByteLevel()
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if kind == "llama" else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *bytes_], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens(ADDED)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    content = json.loads(made.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    return content


@pytest.fixture(scope="module")
def bases() -> dict[str, dict[str, Any]]:
    return {kind: trained(kind) for kind in ("bytes", "split", "llama")}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    pytest.importorskip("transformers").logging.set_verbosity_error()


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


def bos_and_eos(content: dict[str, Any]) -> None:
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}


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


LLAMA, QWEN2, QWEN3 = ({"model_type": name} for name in ("llama", "qwen2", "qwen3"))
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


def write(folder: Path, base: dict[str, Any], files: dict[str, Any], change: Any = None) -> Path:
    folder.mkdir()
    content = json.loads(json.dumps(base))
    if change is not None:
        change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name, value in files.items():
        path = folder / (name if "." in name else f"{name}.json")
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


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


def test_an_eos_after_the_text_is_left_out_of_prompts(bases: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", bases["bytes"], {"tokenizer_config": {"eos_token": "</s>"}}, bos_and_eos)
    tokens = load_tokenizer(folder).encode("hello")
    assert (tokens[0], tokens.count(2)) == (1, 0)


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


# Where answers end

STOPS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "list": ({"generation_config": {"eos_token_id": [3, 4]}}, (3, 4)),
    "list and own": (
        {"generation_config": {"eos_token_id": [3, 4]}, "tokenizer_config": {"eos_token": "</s>"}},
        (3, 4, 2),
    ),
    "own among": ({"generation_config": {"eos_token_id": [3, 2]}, "tokenizer_config": {"eos_token": "</s>"}}, (3, 2)),
    "number": ({"generation_config": {"eos_token_id": 3}, "config": LLAMA | {"eos_token_id": 4}}, (3,)),
    "config": ({"config": LLAMA | {"eos_token_id": [4, 3]}}, (4, 3)),
    "config is not asked": (
        {"generation_config": {}, "config": LLAMA | {"eos_token_id": 4}, "tokenizer_config": {"eos_token": "</s>"}},
        (2,),
    ),
    "null": (
        {"generation_config": {"eos_token_id": None}, "config": QWEN3, "tokenizer_config": {"eos_token": "<|im_end|>"}},
        (3,),
    ),
    "empty": ({"generation_config": {"eos_token_id": []}, "tokenizer_config": {"eos_token": "</s>"}}, (2,)),
    "llama's default": ({"config": LLAMA}, (2,)),
    "llama without": (
        {"config": LLAMA | {"eos_token_id": None}, "tokenizer_config": {"eos_token": "<|im_end|>"}},
        (3,),
    ),
    "qwen's class": ({"config": QWEN3}, (4,)),
    "map": ({"config": QWEN2, "special_tokens_map": {"eos_token": "<|im_end|>"}}, (3,)),
}

VLLM = """
import json, sys
from vllm import SamplingParams
from vllm.transformers_utils.config import try_get_generation_config
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    config = try_get_generation_config(folder, trust_remote_code=False)
    asked = SamplingParams()
    own = AutoTokenizer.from_pretrained(folder).eos_token_id
    asked.update_from_generation_config(config.to_diff_dict() if config else {}, own)
    print("STOPS", json.dumps(sorted(asked.all_stop_token_ids)))
"""


@pytest.fixture(scope="module")
def stop_folders(bases: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stops")
    shape = {"vocab_size": 800, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    folders = {}
    for name, (files, _) in STOPS.items():
        config = {
            "config": shape | files.get("config", {"model_type": "qwen3", "tokenizer_class": "PreTrainedTokenizerFast"})
        }
        folders[name] = write(root / name.replace(" ", "-"), bases["bytes"], files | config)
    return folders


@pytest.mark.parametrize("name", STOPS)
def test_answers_end_at_every_files_ends(name: str, stop_folders: dict[str, Path]) -> None:
    assert load_tokenizer(stop_folders[name]).eos_ids == STOPS[name][1]


@pytest.mark.slow
def test_answers_end_where_vllm_stops_by_itself(stop_folders: dict[str, Path]) -> None:
    pytest.importorskip("vllm")
    command = [sys.executable, "-c", VLLM, *map(str, stop_folders.values())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=500)
    theirs = [json.loads(line.removeprefix("STOPS ")) for line in done.stdout.splitlines() if line.startswith("STOPS ")]
    assert dict(zip(stop_folders, theirs, strict=True)) == {name: sorted(ids) for name, (_, ids) in STOPS.items()}


CHAT = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": CHATML}


def test_a_template_whose_end_is_no_end_token_is_refused(bases: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", bases["bytes"], {"tokenizer_config": CHAT})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.turn_end == 3
    assert tokenizer.encode_prompt("hello", chat=False)
    message = (
        r"ends an answer with '<\|im_end\|>', which is no end token; add 3 to eos_token_id in generation_config.json"
    )
    for ask in (tokenizer.check_chat, lambda: tokenizer.encode_prompt("hello", chat=True)):
        with pytest.raises(TokenizerError, match=message):
            ask()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 3]}))
    mended = load_tokenizer(folder)
    mended.check_chat()
    tokens, mask = mended.encode_supervised("hello", "two", chat=True)
    assert (tokens[-1], mask[-1]) == (3, True)
    assert mended.encode_supervised("hello", "two", chat=False)[0][-1] == 4


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, 3),
        (EOS_AFTER, 2),
        ("{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}<|im_end|>", None),
        ("{{ raise_exception('system first') }}", None),
        ("{{ messages[0]['content'] + 1 }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_special_token_after_an_answer(
    template: str, end: int | None, bases: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", bases["bytes"], {"tokenizer_config": CHAT | {"chat_template": template}})
    assert load_tokenizer(folder).turn_end == end


# Chat templates

MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "system", "content": " s "},
        {"role": "user", "content": "é <&>'\""},
        {"role": "assistant", "content": "a\n"},
    ],
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nt\n</think>\n\na"}],
]
TEMPLATES = [
    CHATML,
    EOS_AFTER,
    "{% if messages[0].role == 'system' %}\n  S{{ messages[0].content|trim }}\n{% else %}\n  none\n{% endif %}\nend\n",
    "{%- for m in messages -%}\n  {%- if loop.last %}{% break %}{% endif -%}\n {{ m | tojson }}\n{%- endfor %}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m|tojson(indent=2) }}{% endfor %}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}\n  {{ x }}\n{% endgeneration %}\n{{ x }}",
    "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endfor %}",
    "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + m.content|length %}{% endfor %}{{ s.n }}",
    "{{ strftime_now('%Y-%m-%d') }}{{ tools is none }}{{ documents }}{{ undefined_name }}{{ pad_token }}",
    "{{ messages[-1].content.split('</think>')[-1].lstrip('\\n') }}{{ messages[::-1]|map(attribute='role')|join }}",
    "{{ raise_exception('no system') if messages[0].role == 'system' else 'ok' }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0].content) }}{% if add_generation_prompt %}GO{% endif %}",
    "line\r\n  {% if true %}\r\n  x\r\n{% endif %}\r\n",
    "{{ messages[0].content.format_map }}{{ messages[0].nothing }}{{ messages[0].nothing.more }}",
    "",
]


@pytest.mark.parametrize("where", ["tokenizer_config", "chat_template.jinja"])
def test_templates_render_as_in_transformers(where: str, bases: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rendered = refused = 0
    for index, template in enumerate(TEMPLATES):
        config = CHAT | {"pad_token": "<pad>", "chat_template": "other"}
        folder = write(tmp_path / str(index), bases["bytes"], {"tokenizer_config": config})
        if where == "tokenizer_config":
            (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        else:
            (folder / where).write_bytes(template.encode())
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        for messages in MESSAGES:
            for prompt in (True, False):
                try:
                    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                except Exception:  # noqa: BLE001  (a template may raise anything)
                    refused += 1
                    with pytest.raises(TokenizerError, match="refuses the dialog"):
                        ours.render_chat(messages, add_generation_prompt=prompt)
                    continue
                assert ours.render_chat(messages, add_generation_prompt=prompt) == expected, template
                rendered += 1
    assert rendered > 70
    assert refused > 10


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": "file"}, "file"),
        ({"tokenizer_config": CHAT | {"chat_template": {"default": "d", "tool_use": "t"}}}, "d"),
        ({"tokenizer_config": CHAT | {"chat_template": [{"name": "default", "template": "d"}]}}, "d"),
        ({"chat_template.json": json.dumps({"chat_template": "of a processor"})}, "config"),
        ({"additional_chat_templates/rag.jinja": "rag"}, None),
        ({"additional_chat_templates/rag.jinja": "rag", "chat_template.jinja": "file"}, "file"),
        ({"additional_chat_templates/default.jinja": "default", "chat_template.jinja": "file"}, "default"),
        ({"tokenizer_config": {"eos_token": "</s>"}}, None),
    ],
)
def test_the_template_that_counts_is_the_one_of_transformers(
    files: dict[str, Any], expected: str | None, bases: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base = {"tokenizer_config": CHAT | {"chat_template": "config"}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "additional_chat_templates").mkdir()
    (tmp_path / "model").joinpath("tokenizer.json").write_text(json.dumps(bases["bytes"]))
    for name, value in (base | files).items():
        path = tmp_path / "model" / (name if "." in name else f"{name}.json")
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    if expected is None:
        with pytest.raises(ValueError, match=re.compile("chat template", re.I)):
            theirs.apply_chat_template(MESSAGES[0], tokenize=False)
        with pytest.raises(TokenizerError, match="chat template"):
            load_tokenizer(tmp_path / "model").render_chat(MESSAGES[0])
        return
    assert theirs.apply_chat_template(MESSAGES[0], tokenize=False) == expected
    assert load_tokenizer(tmp_path / "model").render_chat(MESSAGES[0]) == expected

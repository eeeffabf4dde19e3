"""Where answers end: every end that the files of a folder name, as vLLM has it, and the end of a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.text.tokenizer import TokenizerError, load_tokenizer
from tests.support.trained_tokenizers import CHAT, CHATML, EOS_AFTER, LLAMA, QWEN2, QWEN3, write
from tests.support.trained_tokenizers import bases as bases
from tests.support.trained_tokenizers import quiet as quiet

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


def vllms_stops(folder: Path) -> list[int]:
    """Ids at which vLLM ends an answer of this model by itself."""
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.transformers_utils.config import try_get_generation_config

    config = try_get_generation_config(str(folder), trust_remote_code=False)
    asked = SamplingParams()
    own = AutoTokenizer.from_pretrained(str(folder)).eos_token_id
    asked.update_from_generation_config(config.to_diff_dict() if config else {}, own)
    return sorted(asked.all_stop_token_ids)


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


@pytest.mark.filterwarnings("ignore")  # vLLM's own
def test_answers_end_where_vllm_stops_by_itself(stop_folders: dict[str, Path]) -> None:
    pytest.importorskip("vllm")
    theirs = {name: vllms_stops(folder) for name, folder in stop_folders.items()}
    assert theirs == {name: sorted(ids) for name, (_, ids) in STOPS.items()}


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


def test_an_eos_after_the_text_is_left_out_of_prompts(bases: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", bases["bytes"], {"tokenizer_config": {"eos_token": "</s>"}}, bos_and_eos)
    tokens = load_tokenizer(folder).encode("hello")
    assert (tokens[0], tokens.count(2)) == (1, 0)


def bos_and_eos(content: dict[str, Any]) -> None:
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}

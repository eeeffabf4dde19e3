"""The tokenizer of real model folders against transformers' own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from learner_jax.contracts.model import read_model_config
from serving_bridge.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from tests.conftest import REPOSITORY
from tests.support.chat_templates import KEEP_THINKING_TEMPLATE, QWEN2_TEMPLATE, QWEN3_TEMPLATE
from tests.support.new_models import created as created

TEXTS = [
    "",
    "a",
    "Once upon a time, there was a little girl named Lily.",
    "  two  spaces, a\ttab\nand lines\n\n",
    "naïve café 東京 🎉 \u200d 12345 -67.8e9",
    "<|im_start|>user\nhi<|im_end|>",
    "<s> literal </s> marks",
]


# Everything that transformers' environment adds to Jinja, with blocks whose line breaks it trims.
FEATURES_TEMPLATE = (
    "{{ bos_token }}{{ eos_token }}\n"
    "{% for message in messages %}\n"
    "  {% if message.role == 'skip' %}\n"
    "    {% continue %}\n"
    "  {% endif %}\n"
    "  {% generation %}\n"
    "{{ message | tojson }} & {{ message.content | trim }}\n"
    "  {% endgeneration %}\n"
    "{% endfor %}\n"
    "{% if not messages %}{{ raise_exception('empty') }}{% endif %}\n"
    "{{ strftime_now('%Y') }}{{ tools }}{{ documents }}{{ undefined_thing }}\n"
)


DIALOG = [
    {"role": "skip", "content": "not shown"},
    {"role": "user", "content": ' <b>"1 & 2"</b> é '},
    {"role": "assistant", "content": "x"},
]


def reference(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def qwen_dir(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    shutil.copy(shared_data / "tokenizer_qwen" / "tokenizer.json", folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True},
        "chat_template": QWEN2_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    return folder


@pytest.fixture(scope="module")
def qwen(qwen_dir: Path) -> Tokenizer:
    return load_tokenizer(qwen_dir)


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a tokenizer's folder; `None` removes a key of tokenizer_config.json."""
    target.mkdir()
    for name in ("tokenizer.json", "generation_config.json", "config.json"):
        if (source / name).exists():
            shutil.copy(source / name, target)
    config = {**json.loads((source / "tokenizer_config.json").read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (target / "tokenizer_config.json").write_text(json.dumps(kept))
    return target


def test_stories_tokens_equal_transformers(stories_model: Path) -> None:
    ours, theirs = load_tokenizer(stories_model), reference(stories_model)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode("Once")[0] == 1
    # The model really ends its stories with its BOS token; generation_config says so and wins over config.json.
    assert ours.eos_ids == (1, 2)
    assert ours.pad_id == 1


def test_stories_tokens_equal_the_golden_ones(stories_model: Path, shared_data: Path) -> None:
    golden = json.loads((shared_data / "llama260k_stories" / "greedy_golden.json").read_text())
    tokenizer = load_tokenizer(stories_model)
    assert tokenizer.decode(golden["tokens"]) == golden["text"]
    assert tokenizer.encode(golden["text"])[:100] == golden["tokens"][:100]


def test_qwen_tokens_equal_transformers(qwen: Tokenizer, qwen_dir: Path) -> None:
    theirs = reference(qwen_dir)
    for text in TEXTS:
        ids = qwen.encode(text)
        assert ids == theirs.encode(text), text
        assert qwen.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        messages = [{"role": "user", "content": text}]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert qwen.encode_prompt(text, chat=True) == expected
    assert qwen.vocab_size == 151_669
    assert qwen.eos_ids == (151645, 151643)
    assert qwen.pad_id == 151643


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_real_qwen_tokenizer_equals_the_class_that_transformers_takes(
    qwen_dir: Path, tmp_path: Path, model_type: str
) -> None:
    folder = edited(qwen_dir, tmp_path / "model", tokenizer_class="Qwen2Tokenizer", split_special_tokens=False)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "transformers_version": "4.51.0"}))
    ours, theirs = load_tokenizer(folder), reference(folder)
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    assert ours.backend.get_vocab(with_added_tokens=True) == theirs.get_vocab()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.turn_end == 151645
    ours.check_chat()


def test_a_created_tokenizer_equals_transformers(created: Path) -> None:
    ours, theirs = load_tokenizer(created), reference(created)
    for text in ("Calculate 57 + 98.", "Calculate 5 - 12.", "-7", "ünknown £ text", "  +  "):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert ours.eos_ids == (theirs.eos_token_id,)
    assert ours.pad_id == theirs.pad_token_id


@pytest.mark.parametrize("flag", [True, False, None])
def test_the_post_processor_decides_about_bos_as_in_transformers(
    stories_model: Path, created: Path, tmp_path: Path, flag: bool | None
) -> None:
    for index, (source, has_bos) in enumerate(((stories_model, True), (created, False))):
        folder = edited(source, tmp_path / str(index), add_bos_token=flag)
        assert load_tokenizer(folder).encode("5 + 5") == reference(folder).encode("5 + 5")
        assert bool(load_tokenizer(folder).prefix_ids) == has_bos


def test_an_end_token_is_never_put_after_a_prompt(stories_model: Path, tmp_path: Path) -> None:
    folder = edited(stories_model, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    theirs = reference(folder).encode("Once")
    assert theirs[-1] == 2
    assert load_tokenizer(folder).encode("Once") == theirs[:-1]


def test_chat_templates_render_as_in_transformers(stories_model: Path, tmp_path: Path) -> None:
    folder = edited(stories_model, tmp_path / "model", chat_template=FEATURES_TEMPLATE)
    ours, theirs = load_tokenizer(folder), reference(folder)
    for prompt in (True, False):
        expected = theirs.apply_chat_template(DIALOG, add_generation_prompt=prompt, tokenize=False)
        assert ours.render_chat(DIALOG, add_generation_prompt=prompt) == expected
    assert "<b>" in ours.render_chat(DIALOG)
    assert "not shown" not in ours.render_chat(DIALOG)
    with pytest.raises(TokenizerError, match="refuses the dialog: empty"):
        ours.render_chat([])


def test_golden_dialogs_render_exactly(shared_data: Path, created: Path, tmp_path: Path) -> None:
    cases = json.loads((shared_data / "rl_golden_vectors" / "chat_template_golden.json").read_text())["cases"]
    assert len(cases) == 3
    for index, template in enumerate((QWEN2_TEMPLATE, QWEN3_TEMPLATE, KEEP_THINKING_TEMPLATE)):
        folder = edited(created, tmp_path / str(index), chat_template=template)
        tokenizer = load_tokenizer(folder)
        rendered = tokenizer.render_chat(cases[index]["messages"], add_generation_prompt=False)
        assert rendered == cases[index]["expected"], cases[index]["model"]


def test_a_template_file_wins_and_lists_use_their_default(created: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    folder = edited(created, tmp_path / "model", chat_template=named)
    assert load_tokenizer(folder).render_chat(DIALOG) == "plain"
    (folder / "chat_template.jinja").write_text("from file")
    assert load_tokenizer(folder).render_chat(DIALOG) == "from file"
    (folder / "chat_template.jinja").write_text("{% oops %}")
    with pytest.raises(TokenizerError, match="not valid Jinja"):
        load_tokenizer(folder)


def test_loading_a_tokenizer_imports_neither_torch_nor_transformers(stories_model: Path) -> None:
    code = (
        "import sys; from serving_bridge.text.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(stories_model)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_supervised_examples_keep_the_prompts_ids(qwen: Tokenizer) -> None:
    for prompt, target, chat in (("What is 1+", "1?", False), ("Hel", "lo", False), ("hi", "there", True)):
        tokens, mask = qwen.encode_supervised(prompt, target, chat=chat)
        prompt_ids = qwen.encode_prompt(prompt, chat=chat)
        assert tokens[: len(prompt_ids)] == prompt_ids
        assert tokens[-1] == qwen.eos_ids[0]
        assert qwen.decode(tokens[len(prompt_ids) :]) == target
        assert mask == [False] * len(prompt_ids) + [True] * (len(tokens) - len(prompt_ids))
    # "Hello" is one token: joint tokenisation would have merged the border away.
    assert len(qwen.encode("Hello")) == 1
    assert len(qwen.encode_supervised("Hel", "lo")[0]) == 3


def test_a_target_gets_no_second_bos(stories_model: Path) -> None:
    tokenizer = load_tokenizer(stories_model)
    tokens, mask = tokenizer.encode_supervised("Once upon", "a time")
    assert tokens == [*tokenizer.encode("Once upon"), *tokenizer.encode("a time")[1:], 1]
    assert mask.index(True) == len(tokenizer.encode("Once upon"))


def test_a_tokenizer_of_another_model_is_refused(qwen: Tokenizer, stories_model: Path) -> None:
    config = read_model_config(stories_model)
    load_tokenizer(stories_model).check_vocabulary(config)
    with pytest.raises(TokenizerError, match="ids up to 151668, but the model's vocab_size is 512"):
        qwen.check_vocabulary(config)


def test_an_end_token_outside_the_vocabulary_is_refused(stories_model: Path, tmp_path: Path) -> None:
    folder = edited(stories_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 512}))
    with pytest.raises(TokenizerError, match="eos token id 512 is outside the model's vocabulary of 512"):
        load_tokenizer(folder).check_vocabulary(read_model_config(folder))


def test_damaged_folders_are_explained(stories_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist; model\.path"):
        load_tokenizer(tmp_path)
    folder = edited(stories_model, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(folder)
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        (folder / name).unlink()
    with pytest.raises(TokenizerError, match="names no end token"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json can't be loaded"):
        load_tokenizer(folder)


def test_prompts_that_can_not_be_made_are_errors(stories_model: Path, created: Path) -> None:
    told = r"no chat template: name a chat model, or set chat = false, of \[task\] or the suite"
    with pytest.raises(TokenizerError, match=told):
        load_tokenizer(stories_model).encode_prompt("hi", chat=True)
    with pytest.raises(TokenizerError, match="has no tokens"):
        load_tokenizer(created).encode_prompt("", chat=False)

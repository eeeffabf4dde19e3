"""Observations of a dialog: rendered one by one they are the template's own text, and end what went before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from serving_bridge.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from tests.support.chat_templates import KEEP_THINKING_TEMPLATE, QWEN2_TEMPLATE, QWEN3_TEMPLATE
from tests.support.qwen_tokenizer import qwen as qwen
from tests.support.qwen_tokenizer import qwen_folder as qwen_folder

CHATML_END = "<|im_end|>"


#: what the templates of `test_tokenization` leave out that have no generation prompt
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    from dataclasses import replace

    from serving_bridge.text.chat_template import environment

    return replace(tokenizer, chat_template=environment().from_string(template))


@pytest.mark.parametrize("template", [QWEN2_TEMPLATE, KEEP_THINKING_TEMPLATE + ASSISTANT])
@pytest.mark.parametrize("answer", ["b", "<think>\nmock thinking\n</think>\n\nb", "naïve 東京 "])
def test_turns_rendered_one_by_one_are_the_template_s_own_text(qwen: Tokenizer, template: str, answer: str) -> None:
    tokenizer = with_template(qwen, template)
    messages = [{"role": "user", "content": "a"}]
    ids = tokenizer.encode_prompt("a", chat=True)
    end = tokenizer.backend.token_to_id(CHATML_END)
    for said in ("1", "wrong, try <again>\n", "2"):
        ids += [*tokenizer.backend.encode(answer, add_special_tokens=False).ids, end]
        ids += tokenizer.encode_observation(said, chat=True, after=end)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": said}]
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == tokenizer.render_chat(messages)


def test_a_template_that_forgets_thoughts_changes_nothing_of_what_was_sampled(qwen: Tokenizer) -> None:
    """Only the stock template's text of the last turn has them; the ids keep all."""
    tokenizer = with_template(qwen, QWEN3_TEMPLATE)
    end = tokenizer.eos_ids[0]
    observation = tokenizer.encode_observation("1", chat=True, after=end)
    assert tokenizer.backend.decode(observation, skip_special_tokens=False) == (
        "\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_end_token_is_there_once_whichever_the_answer_ended_with(qwen: Tokenizer) -> None:
    tokenizer = with_template(qwen, QWEN2_TEMPLATE)
    first, second = (tokenizer.encode_observation("1", chat=True, after=end) for end in tokenizer.eos_ids)
    assert first == second
    unended = tokenizer.encode_observation("1", chat=True, after=5)
    assert unended == [tokenizer.backend.token_to_id(CHATML_END), *first]


def test_a_template_that_hides_answers_is_refused(qwen: Tokenizer) -> None:
    tokenizer = with_template(qwen, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(TokenizerError, match="does not show an answer as it is"):
        tokenizer.encode_observation("1", chat=True, after=5)


def test_the_fingerprint_is_of_the_file(qwen_folder: Path, qwen: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(qwen_folder, tmp_path / "other")
    assert load_tokenizer(tmp_path / "other").fingerprint == qwen.fingerprint
    assert len(qwen.fingerprint) == 32
    with (tmp_path / "other" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert load_tokenizer(tmp_path / "other").fingerprint != qwen.fingerprint

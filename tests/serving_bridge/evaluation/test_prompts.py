"""Prompts of messages and tools become the token ids that the model's chat template writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rewards.contracts import Problem
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.text import Tokenizer, load_tokenizer
from tests.support.qwen_tokenizer import qwen_folder

__all__ = ["qwen_folder"]  # a fixture

#: Tools and calls as Qwen writes them.
TEMPLATE = (
    "{%- for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'tool' %}<tool_response>\n{% endif %}{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
USER = {"role": "user", "content": "Weather in Rome?"}


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> Tokenizer:
    (qwen_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return load_tokenizer(qwen_folder)


def encoder(tokenizer: Tokenizer, *, chat: bool = True) -> PromptEncoder:
    return PromptEncoder(tokenizer, template="Q: {question}", chat=chat, max_prompt_tokens=1000)


def problem(**more: object) -> Problem:
    return Problem(0, "Weather in Rome?", "sunny", {}, **more)  # type: ignore[arg-type]


def test_messages_are_rendered_and_no_template_goes_around_them(qwen: Tokenizer) -> None:
    messages = ({"role": "system", "content": "Be brief."}, USER)
    ids = encoder(qwen).tokens(problem(prompt=messages))
    assert ids == qwen.encode_chat(messages)
    shown = qwen.backend.decode(ids, skip_special_tokens=False)
    assert shown.startswith("<|im_start|>system\nBe brief.")
    assert "Q: " not in shown
    assert encoder(qwen).text(problem(prompt=messages)) == "system: Be brief.\n\nuser: Weather in Rome?"
    assert encoder(qwen).supervised(problem(prompt=messages), "sunny")[0][: len(ids)] == ids


def test_a_text_of_its_own_takes_the_place_of_the_template(qwen: Tokenizer) -> None:
    plain = encoder(qwen, chat=False)
    assert plain.tokens(problem(prompt="Say: a")) == qwen.encode("Say: a")
    assert plain.tokens(problem()) == qwen.encode("Q: Weather in Rome?")


def test_tools_reach_the_model_through_its_template(qwen: Tokenizer) -> None:
    ids = encoder(qwen).tokens(problem(prompt=(USER,), tools=(TOOL,)))
    shown = qwen.backend.decode(ids, skip_special_tokens=False)
    assert '"name": "weather"' in shown
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    dialog = (USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "sunny"})
    shown = qwen.backend.decode(encoder(qwen).tokens(problem(prompt=dialog, tools=(TOOL,))), skip_special_tokens=False)
    assert '{"city": "Rome"}' in shown
    assert "<tool_response>\nsunny<|im_end|>" in shown


def test_a_template_that_does_not_show_tools_gets_them_in_the_system_message(qwen_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen_folder, tmp_path / "model")
    template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = load_tokenizer(tmp_path / "model")
    ids = encoder(tokenizer).tokens(problem(prompt=(USER,), tools=(TOOL,)))
    shown = tokenizer.backend.decode(ids, skip_special_tokens=False)
    assert '"name": "weather"' in shown
    assert shown.startswith("<|im_start|>system")

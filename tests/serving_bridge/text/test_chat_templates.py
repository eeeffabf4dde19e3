"""Chat templates of any folder: the one that counts, rendered as in transformers, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.text.tokenizer import TokenizerError, load_tokenizer
from tests.support.trained_tokenizers import CHAT, CHATML, EOS_AFTER, write
from tests.support.trained_tokenizers import bases as bases
from tests.support.trained_tokenizers import quiet as quiet

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

"""The chat template of a model folder, compiled and rendered as transformers' `apply_chat_template` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serving_bridge.text.tokenizer_files import TokenizerError


def load_template(folder: Path, config: Mapping[str, Any]) -> jinja2.Template | None:
    """The compiled template that is taken where no name and no tools are given; None if the model has none.

    chat_template.jinja and additional_chat_templates/NAME.jinja go before tokenizer_config.json's chat_template: a
    text, or several by name. Of several, the one named default counts.

    Raises:
      TokenizerError: the template is no text or no valid Jinja, or several have names and none is default.
    """
    source, origin = _source(folder, config)
    if isinstance(source, dict):
        if "default" not in source:
            raise TokenizerError(
                f"{origin} has chat templates named {', '.join(sorted(map(repr, source)))}, expected one named default"
            )
        source = source["default"]
    if source is None:
        return None
    if not isinstance(source, str):
        raise TokenizerError(f"{origin}: the chat template is a {type(source).__name__}, expected a text")
    try:
        return environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TokenizerError(f"{origin}: the chat template is not valid Jinja: {error}") from error


def _source(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Path]:
    single, several = folder / "chat_template.jinja", folder / "additional_chat_templates"
    named = {path.name.removesuffix(".jinja"): path for path in several.glob("*.jinja")} if several.is_dir() else {}
    files = ({"default": single} if single.is_file() else {}) | named
    if files:
        try:
            texts = {name: path.read_bytes().decode("utf-8") for name, path in files.items()}
        except (UnicodeDecodeError, OSError) as error:
            raise TokenizerError(f"{folder}: a chat template can't be read: {error}") from error
        # Text files are read with the line ends that Python translates.
        return {name: text.replace("\r\n", "\n").replace("\r", "\n") for name, text in texts.items()}, folder
    origin, value = folder / "tokenizer_config.json", config.get("chat_template")
    if isinstance(value, list):
        try:
            value = {entry["name"]: entry["template"] for entry in value}
        except (KeyError, TypeError) as error:
            raise TokenizerError(f"{origin}: chat_template is a list of other things than name and template") from error
    return value, origin


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training masks; our mask is made elsewhere: print the body.

    The body is a block of its own, as transformers has it: what is set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way to declare tags)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that chat templates are written for: transformers' `render_jinja_template`."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML characters, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005  (local time, as templates expect)

"""Text to token ids and back for a Hugging Face model folder, by the `tokenizers` library alone.

transformers is not imported: it costs seconds and may bring torch into processes that do without. What its
AutoTokenizer would do for causal language models is done here, and the tests compare the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import tokenizers
import xxhash
from jinja2.sandbox import ImmutableSandboxedEnvironment

from learner_jax.hf_names import ModelConfig

#: stands for an answer while a dialog is rendered
_ANSWER = "~answer~"


class TokenizerError(ValueError):
    """A model folder's tokenizer is missing, damaged or doesn't fit: says the file and what was expected."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and the conventions of its model.

    Attributes:
      backend: the `tokenizers` object.
      prefix_ids: what the model expects before plain text: its BOS token, or nothing.
      eos_ids: ids that end an answer; the first one ends supervised targets.
      pad_id: id for padding; the first of `eos_ids` where the model names none (padding is always masked).
      chat_template: compiled template, None if the model has none.
      special_tokens: name -> text, e.g. {"bos_token": "<s>"}; visible to the template.
      model_dir: where all this came from, for errors.
      fingerprint: xxh3-128 of tokenizer.json's bytes, in hex: token ids mean the same where it is the same.
    """

    backend: tokenizers.Tokenizer
    prefix_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    pad_id: int
    chat_template: jinja2.Template | None
    special_tokens: Mapping[str, str]
    model_dir: str
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, after the BOS token if the model expects one; never an EOS token."""
        return [*self.prefix_ids, *self._plain_ids(text)]

    def encode_prompt(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt: plain text, or one user message in the model's chat format, ready for the answer.

        Raises:
          TokenizerError: `chat` without a chat template, or a prompt of no tokens.
        """
        ids = self._plain_ids(self.render_chat([{"role": "user", "content": text}])) if chat else self.encode(text)
        if not ids:
            raise TokenizerError(f"prompt {text!r} has no tokens; a model needs at least one to continue from")
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The dialog as the model's chat template writes it; the template writes the BOS token itself."""
        if self.chat_template is None:
            raise TokenizerError(f"{self.model_dir} has no chat template; set task.chat to false")
        try:
            return self.chat_template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise TokenizerError(f"{self.model_dir}: the chat template refuses the dialog: {error}") from error

    def encode_observation(self, text: str, *, chat: bool, after: int) -> list[int]:
        """Token ids of what comes after an answer: plain text, or a user message in the model's chat format.

        In the chat format they are what the template writes between an answer's end and the next answer's beginning. A
        template may write earlier answers otherwise than they were sampled (Qwen3's leaves out their thoughts); what
        was sampled stays as it is.

        Args:
          after: the answer's last token; an end token that the template would write there is not written again.

        Raises:
          TokenizerError: `chat` without a chat template, or one that does not show answers as they are.
        """
        if not chat:
            return self._plain_ids(text)
        dialog = [("user", "question"), ("assistant", _ANSWER), ("user", text)]
        shown = self.render_chat([{"role": role, "content": content} for role, content in dialog])
        _, found, rest = shown.partition(_ANSWER)
        if not found:
            raise TokenizerError(
                f"{self.model_dir}: the chat template does not show an answer as it is, so that no dialog can be "
                f"continued; set task.turns to 1"
            )
        if after in self.eos_ids:
            ends = [end for i in self.eos_ids if (end := self.backend.id_to_token(i)) and rest.lstrip().startswith(end)]
            rest = rest.lstrip()[len(ends[0]) :] if ends else rest
        return self._plain_ids(rest)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def encode_supervised(self, prompt: str, target: str, *, chat: bool = False) -> tuple[list[int], list[bool]]:
        """Token ids and loss mask, both of one length, of a prompt with the answer to imitate.

        The prompt's ids are those of `encode_prompt`, which the sampler will see; prompt and target are never tokenised
        as one text, since that could merge tokens across the border. The loss is on the target and its end token.
        """
        prompt_ids = self.encode_prompt(prompt, chat=chat)
        target_ids = [*self._plain_ids(target), self.eos_ids[0]]
        return prompt_ids + target_ids, [False] * len(prompt_ids) + [True] * len(target_ids)

    def check_vocabulary(self, config: ModelConfig) -> None:
        """Raises `TokenizerError` if this tokenizer can make ids that the model has no embedding for."""
        if self.vocab_size > config.vocab_size:
            raise TokenizerError(
                f"the tokenizer in {self.model_dir} has ids up to {self.vocab_size - 1}, but the model's vocab_size is "
                f"{config.vocab_size}: tokenizer.json and config.json don't belong together"
            )
        for name, ids in (("eos", self.eos_ids), ("pad", (self.pad_id,))):
            if bad := [i for i in ids if not 0 <= i < config.vocab_size]:
                raise TokenizerError(
                    f"{self.model_dir}: {name} token id {bad[0]} is outside the model's vocabulary of "
                    f"{config.vocab_size}; correct generation_config.json"
                )

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=False).ids)


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face model folder.

    Reads tokenizer.json and, where present, tokenizer_config.json, generation_config.json, config.json and
    chat_template.jinja. The end tokens are generation_config's, else config's, else tokenizer_config's.

    Raises:
      TokenizerError: no usable tokenizer.json, or no file names an end token.
    """
    folder = Path(model_dir)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{path} does not exist; model.path must be a Hugging Face folder with a fast tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception on a damaged file
        raise TokenizerError(f"{path} can't be loaded: {error}") from error
    # Saved padding or truncation settings would silently change prompts.
    backend.no_padding()
    backend.no_truncation()
    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    generation = _read_json(folder / "generation_config.json")
    model = _read_json(folder / "config.json")
    special = _special_tokens(tokenizer_config)
    eos_ids = _eos_ids(backend, special, generation, model, folder)
    return Tokenizer(
        backend=backend,
        prefix_ids=_prefix_ids(backend),
        eos_ids=eos_ids,
        pad_id=_pad_id(backend, special, generation, model, default=eos_ids[0]),
        chat_template=_chat_template(folder, tokenizer_config),
        special_tokens=special,
        model_dir=str(model_dir),
        fingerprint=xxhash.xxh3_128_hexdigest(path.read_bytes()),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the named special tokens; an entry is a string or a serialised AddedToken."""
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            special[name] = text
    return special


def _prefix_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What tokenizer.json's post-processor puts before a text.

    It alone decides, as in transformers 5, which ignores add_bos_token where there is a tokenizer.json. What it puts
    after a text (an EOS token, in some folders) would end a prompt and is left out.
    """
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    start = next(start for start in range(len(full)) if full[start : start + len(plain)] == plain)
    return tuple(full[:start])


def _eos_ids(
    backend: tokenizers.Tokenizer,
    special: Mapping[str, str],
    generation: Mapping[str, Any],
    model: Mapping[str, Any],
    folder: Path,
) -> tuple[int, ...]:
    for source in (generation, model):
        value = source.get("eos_token_id")
        if value is not None and value != []:
            return tuple(value) if isinstance(value, list) else (int(value),)
    eos_id = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if eos_id is None:
        raise TokenizerError(f"{folder} names no end token; add eos_token_id to generation_config.json")
    return (eos_id,)


def _pad_id(
    backend: tokenizers.Tokenizer,
    special: Mapping[str, str],
    generation: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    default: int,
) -> int:
    named = backend.token_to_id(special["pad_token"]) if "pad_token" in special else None
    for value in (named, generation.get("pad_token_id"), model.get("pad_token_id")):
        if value is not None:
            return int(value)
    return default


def _chat_template(folder: Path, config: Mapping[str, Any]) -> jinja2.Template | None:
    """chat_template.jinja, else tokenizer_config's entry: a text, or a list of named ones of which `default` counts."""
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if source is None:
        return None
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"{folder}: the chat template is not valid Jinja: {error}") from error


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training masks; our mask is made elsewhere: print the body."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way to declare tags)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that chat templates are written for: transformers' `render_jinja_template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML characters, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005  (local time, as templates expect)

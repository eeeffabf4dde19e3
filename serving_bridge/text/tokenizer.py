"""Text to token ids and back for a Hugging Face model folder, by the `tokenizers` library alone.

transformers is not imported: it costs seconds and may bring torch into processes that do without. What its
AutoTokenizer would do for causal language models is done here, and the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
import xxhash

from learner_jax.contracts import ModelConfig
from serving_bridge.text.chat_template import load_template
from serving_bridge.text.continuation import ANSWER, continuation
from serving_bridge.text.foreign_text import harmless, marks_of
from serving_bridge.text.special_tokens import load_backend
from serving_bridge.text.tokenizer_files import TokenizerError, TokenizerFiles, read_files, read_object
from serving_bridge.text.tool_prompt import with_tool_prompt

__all__ = ["Tokenizer", "TokenizerError", "load_tokenizer"]

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and the conventions of its model.

    Attributes:
      backend: the `tokenizers` object.
      prefix_ids: what the model expects before plain text: its BOS token, or nothing.
      eos_ids: ids that end an answer, those that vLLM would stop at by itself; the first one ends supervised targets.
      pad_id: id for padding; the first of `eos_ids` where the model names none (padding is always masked).
      chat_template: compiled template, None if the model has none.
      turn_end: special token that the chat template writes after an answer, None if it writes none.
      special_tokens: name -> text, e.g. {"bos_token": "<s>"}; visible to the template.
      model_dir: where all this came from, for errors.
      fingerprint: xxh3-128 of tokenizer.json's bytes, in hex: token ids mean the same where it is the same.
    """

    backend: tokenizers.Tokenizer
    prefix_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    pad_id: int
    chat_template: jinja2.Template | None
    turn_end: int | None
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

    def encode_prompt(self, text: str, *, chat: bool, tools: Messages = ()) -> list[int]:
        """Token ids of a prompt: plain text, or one user message in the model's chat format, ready for the answer.

        Args:
          tools: as of `encode_chat`; plain text has none.

        Raises:
          TokenizerError: a prompt of no tokens; `chat` without a chat template, or one whose end of a turn is no
            end token.
        """
        ids = self.encode_chat([{"role": "user", "content": text}], tools=tools) if chat else self.encode(text)
        if not ids:
            raise TokenizerError(f"prompt {text!r} has no tokens; a model needs at least one to continue from")
        return ids

    def encode_chat(self, messages: Messages, *, tools: Messages = ()) -> list[int]:
        """Token ids of messages in the model's chat format, ready for the answer.

        Args:
          tools: definitions as OpenAI's chat API has them.

        Raises:
          TokenizerError: there is no chat template, it refuses the messages, or its end of a turn is no end token.
        """
        self.check_chat()
        return self._plain_ids(self.render_chat(messages, tools=tools))

    def render_chat(self, messages: Messages, *, tools: Messages = (), add_generation_prompt: bool = True) -> str:
        """The dialog as the model's chat template writes it; the template writes the BOS token itself.

        A template that does not show tools gets them as part of the system message.
        """
        if tools and not self._shows_tools:
            messages, tools = with_tool_prompt(messages, tools), ()
        return self._render(messages, tools, add_generation_prompt)

    def _render(self, messages: Messages, tools: Messages, add_generation_prompt: bool) -> str:
        if self.chat_template is None:
            raise TokenizerError(
                f"{self.model_dir} has no chat template: name a chat model, or set chat = false, of [task] or the suite"
            )
        return _rendered(
            self.chat_template, self.special_tokens, messages, add_generation_prompt, self.model_dir, tools
        )

    @cached_property
    def _shows_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        function = {"name": "probe~tool", "description": "", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}]
        try:
            return "probe~tool" in self._render([{"role": "user", "content": "question"}], tools, True)
        except TokenizerError:
            return False

    def check_chat(self) -> None:
        """Raises `TokenizerError` if an answer in the chat format would not end where the chat template ends it."""
        if self.turn_end is None or self.turn_end in self.eos_ids:
            return
        raise TokenizerError(
            f"{self.model_dir}: the chat template ends an answer with {self.backend.id_to_token(self.turn_end)!r}, "
            f"which is no end token; add {self.turn_end} to eos_token_id in generation_config.json"
        )

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
        return self.encode_continuation([{"role": "user", "content": text}], after=after)

    def encode_continuation(self, messages: Messages, *, after: int) -> list[int]:
        """Token ids of what the chat template writes between an answer and the next, with these messages between them.

        Args:
          messages: of a user or of tools. Texts of strangers must be `harmless` before.
          after: the answer's last token, as in `encode_observation`.

        Raises:
          TokenizerError: there is no chat template, or one that does not show answers as they are.
        """
        ends = [end for index in self.eos_ids if (end := self.backend.id_to_token(index))]

        def render(dialog: Messages, add_generation_prompt: bool) -> str:
            return self._render(dialog, (), add_generation_prompt)

        try:
            return self._plain_ids(continuation(messages, render, ends, has_ended=after in self.eos_ids))
        except TokenizerError as error:
            raise error if self.model_dir in str(error) else TokenizerError(f"{self.model_dir}: {error}") from None

    def harmless(self, text: str) -> str:
        """A stranger's text, which gives no special token and closes no message."""
        return harmless(text, self.backend, self._marks)

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        return marks_of(self.backend)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def decode_marked(self, ids: Sequence[int]) -> str:
        """Text of an answer's ids, special tokens included, but for the one that ended it."""
        kept = list(ids[:-1] if len(ids) and ids[-1] in self.eos_ids else ids)
        return str(self.backend.decode(kept, skip_special_tokens=False))

    def encode_supervised(
        self, prompt: str, target: str, *, chat: bool = False, tools: Messages = ()
    ) -> tuple[list[int], list[bool]]:
        """Token ids and loss mask, both of one length, of a prompt with the answer to imitate.

        The prompt's ids are those of `encode_prompt`, which the sampler will see; prompt and target are never tokenised
        as one text, since that could merge tokens across the border. The loss is on the target and its end token; in
        the chat format that is the one which the template writes.
        """
        return self.continued(self.encode_prompt(prompt, chat=chat, tools=tools), target, chat=chat)

    def continued(self, prompt_ids: Sequence[int], target: str, *, chat: bool) -> tuple[list[int], list[bool]]:
        """`encode_supervised` of a prompt whose ids are known."""
        end = self.turn_end if chat and self.turn_end is not None else self.eos_ids[0]
        target_ids = [*self._plain_ids(target), end]
        return [*prompt_ids, *target_ids], [False] * len(prompt_ids) + [True] * len(target_ids)

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
    """Loads the tokenizer of a Hugging Face model folder, as transformers' AutoTokenizer does.

    Ends are those that vLLM stops at: generation_config.json's, or config.json's where that file is missing, and the
    tokenizer's own end token.

    Raises:
      TokenizerError: no usable tokenizer.json, files that are damaged, disagree or ask for what is not supported, or
        no file names an end token.
    """
    folder = Path(model_dir)
    files = read_files(folder)
    loaded = load_backend(files)
    backend = loaded.backend
    # Saved padding or truncation settings would silently change prompts.
    backend.no_padding()
    backend.no_truncation()
    generation = read_object(folder / "generation_config.json")
    eos_ids = _eos_ids(loaded.special_tokens, files, generation, backend)
    template = load_template(folder, files.config)
    return Tokenizer(
        backend=backend,
        prefix_ids=_prefix_ids(backend, folder),
        eos_ids=eos_ids,
        pad_id=_pad_id(backend, loaded.special_tokens, generation, files.model, default=eos_ids[0]),
        chat_template=template,
        turn_end=_turn_end(template, loaded.special_tokens, backend, str(model_dir)),
        special_tokens=loaded.special_tokens,
        model_dir=str(model_dir),
        fingerprint=xxhash.xxh3_128_hexdigest((folder / "tokenizer.json").read_bytes()),
    )


def _rendered(
    template: jinja2.Template,
    special_tokens: Mapping[str, str],
    messages: Messages,
    add_generation_prompt: bool,
    model_dir: str,
    tools: Messages = (),
) -> str:
    try:
        return template.render(
            messages=list(messages),
            tools=list(tools) or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except Exception as error:  # a template is a program and may raise anything
        raise TokenizerError(f"{model_dir}: the chat template refuses the dialog: {error}") from error


def _turn_end(
    template: jinja2.Template | None, special_tokens: Mapping[str, str], backend: tokenizers.Tokenizer, model_dir: str
) -> int | None:
    """The special token right after the last answer of a dialog; None if there is none, or no dialog can be shown."""
    if template is None:
        return None
    dialog = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
    try:
        shown = _rendered(template, special_tokens, dialog, False, model_dir)
    except TokenizerError:
        return None
    rest = shown.rpartition(ANSWER)[2] if ANSWER in shown else ""
    ids = backend.encode(rest.lstrip(), add_special_tokens=False).ids
    added = backend.get_added_tokens_decoder()
    return ids[0] if ids and ids[0] in added and added[ids[0]].special else None


def _prefix_ids(backend: tokenizers.Tokenizer, folder: Path) -> tuple[int, ...]:
    """What tokenizer.json's post-processor puts before a text.

    It alone decides, as in transformers 5, which ignores add_bos_token where there is a tokenizer.json. What it puts
    after a text (an EOS token, in some folders) would end a prompt and is left out.
    """
    for text in ("a", "0", " ", "A", "."):
        if plain := backend.encode(text, add_special_tokens=False).ids:
            full = backend.encode(text, add_special_tokens=True).ids
            start = next(start for start in range(len(full)) if full[start : start + len(plain)] == plain)
            return tuple(full[:start])
    raise TokenizerError(f"{folder / 'tokenizer.json'} gives no token for an 'a' or '0'; expected a language model's")


def _eos_ids(
    special: Mapping[str, str],
    files: TokenizerFiles,
    generation: Mapping[str, Any],
    backend: tokenizers.Tokenizer,
) -> tuple[int, ...]:
    has_generation = (files.folder / "generation_config.json").is_file()
    origin, source = ("generation_config.json", generation) if has_generation else ("config.json", files.model)
    # The default of transformers' LlamaConfig.
    default = 2 if source is files.model and files.model.get("model_type") == "llama" else None
    value = source.get("eos_token_id", default)
    ids = list(value) if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) for i in ids):
        raise TokenizerError(
            f"{files.folder / origin}: eos_token_id is {value!r}, expected a token id, a list of them or null"
        )
    own = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    ids += [own] if own is not None else []
    if not ids:
        raise TokenizerError(f"{files.folder} names no end token; add eos_token_id to generation_config.json")
    return tuple(dict.fromkeys(ids))


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
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return default

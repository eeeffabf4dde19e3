"""Text of documents, tools and strangers, made harmless: it can't become the marks that structure a dialog.

A chat template puts such text between special tokens, and the whole is encoded at once. So a document that holds
`<|im_end|>` would end the message that quotes it, and could go on as the assistant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import tokenizers

#: Marks that are plain text to some tokenizers, and structure all the same.
_MARKS = (
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"),
    *("<think>", "</think>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
)
_BRACKETED = re.compile(r"<\|[^\s|]*\|>")
_ROUNDS = 4


def marks_of(backend: tokenizers.Tokenizer) -> tuple[str, ...]:
    """Texts that must not come from a stranger: special tokens, and what templates write around messages."""
    added = backend.get_added_tokens_decoder().values()
    own = [token.content for token in added if token.special or _BRACKETED.fullmatch(token.content)]
    return tuple(sorted({*own, *_MARKS}, key=len, reverse=True))


def harmless(text: str, backend: tokenizers.Tokenizer, marks: Sequence[str]) -> str:
    """`text` with a space inside each mark; it gives no special token, whatever it holds.

    Lone surrogates, which no tokenizer takes, become question marks.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    for _ in range(_ROUNDS):
        found = [mark for mark in marks if mark in text]
        if not found:
            break
        for mark in found:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}" if len(mark) > 1 else " ")
    if not _gives_special(text, backend):
        return text
    # A normalizer made a mark of other characters: what is left can't be written as one.
    kept = (character if character.isalnum() or character in ' \n.,;:!?"-' else " " for character in text)
    plain = "".join(kept)
    return plain if not _gives_special(plain, backend) else ""


def _gives_special(text: str, backend: tokenizers.Tokenizer) -> bool:
    special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    return not special.isdisjoint(_unasked(backend.encode(text, add_special_tokens=False).ids, backend))


def _unasked(ids: Iterable[int], backend: tokenizers.Tokenizer) -> set[int]:
    """The ids, but for the one that stands for what the vocabulary lacks."""
    unknown = getattr(backend.model, "unk_token", None)
    return set(ids) - ({backend.token_to_id(unknown)} if unknown else set())

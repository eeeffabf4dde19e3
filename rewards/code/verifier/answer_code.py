"""The code in an answer: its last block of Python, or all of it where it has no block.

What a model wrote is not parsed here: a text that is no Python fails in the sandbox.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`~]*)[^\n]*$", re.MULTILINE)
_PYTHON = ("", "python", "py", "python3", "python2", "python3.11", "pycon", "{python}")
_THOUGHT_END = "</think>"
MAX_CODE_CHARACTERS = 1 << 20


def answer_code(answer: str) -> str | None:
    """The code that an answer gives, None if it gives none.

    A fence that is not closed, as in an answer that was cut off, ends with the answer. Of several blocks the last one
    counts. Without any fence the whole answer counts as code.
    """
    text = answer.rpartition(_THOUGHT_END)[2] if _THOUGHT_END in answer else answer
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    if len(text) > MAX_CODE_CHARACTERS:
        return None
    if not _FENCE.search(text):
        return text if text.strip() else None
    blocks = _blocks(text)
    return blocks[-1] if blocks else None


def _blocks(text: str) -> list[str]:
    """Contents of the blocks of Python, in order; of blocks without a language too."""
    found = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1][0] == opened[1][0] and len(fence[1]) >= len(opened[1]) and not fence[2]:
            found.append((opened[2].lower(), text[opened.end() : fence.start()]))
            opened = None
        elif fence[2].lower() in _PYTHON[1:]:
            # A block that begins inside of another: the first one was never closed.
            opened = fence
    if opened is not None:
        found.append((opened[2].lower(), text[opened.end() :]))
    named = [content for language, content in found if language in _PYTHON[1:]]
    return [_dedented(content) for content in named or [c for language, c in found if language == ""]]


def _dedented(block: str) -> str:
    """A block as it stands, less an indentation that all of its lines have."""
    lines = [line for line in block.split("\n") if line.strip()]
    indent = min((len(line) - len(line.lstrip(" ")) for line in lines), default=0)
    return "\n".join(line[indent:] if line.strip() else "" for line in block.strip("\n").split("\n")) + "\n"

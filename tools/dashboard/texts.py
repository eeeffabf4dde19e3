"""Texts of models and users on their way to the page: cut to what people read, nothing in them that could act."""

from __future__ import annotations

from typing import Any

from learner_jax.runtime import printable

#: Characters of one text that are shown.
MAX_TEXT = 6000


def shown(text: Any, most: int = MAX_TEXT) -> str:
    """The text with control and direction characters as escapes, cut; the page writes it as text, never as markup."""
    text = text if isinstance(text, str) else "" if text is None else str(text)
    more = len(text) - most
    told = printable(text[:most], keep_lines=True)
    return told if more <= 0 else f"{told}\n... {more:,} more characters"


def line(text: Any, most: int = 500) -> str:
    """The same for a text of one line."""
    return shown(text, most).replace("\n", " ")

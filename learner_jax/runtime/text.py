"""Text of models and users as a terminal may see it: what is not printable stands as its escape."""

from __future__ import annotations


def printable(text: object, *, keep_lines: bool = False) -> str:
    """`str(text)` with every character that is not printable as a backslash escape.

    Escape sequences, controls, bidirectional overrides, zero-width characters and lone surrogates would change what a
    person sees, or can't be encoded.

    Args:
      keep_lines: leave line feeds and tabs as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    kept = "\n\t" if keep_lines else ""
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")

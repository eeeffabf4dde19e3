"""Text of others: escaped where it is not printable."""

from __future__ import annotations

from learner_jax.runtime.text import printable


def test_lines_stay_where_they_are_kept() -> None:
    assert printable("a\nb\t\x1b") == r"a\nb\t\x1b"
    assert printable("a\nb\t\x1b", keep_lines=True) == "a\nb\t\\x1b"
    assert printable("\ud800\u202e") == r"\ud800\u202e"
    assert printable(7) == "7"

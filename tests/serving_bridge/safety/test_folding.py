"""Folded text: ASCII, and every place leads back to the original."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving_bridge.safety.folding import folded


@given(st.text(st.characters(codec=None), max_size=60))
def test_a_fold_is_ascii_and_every_span_leads_back(text: str) -> None:
    view = folded(text)
    assert view.text.isascii()
    last = 0
    for place in range(len(view.text)):
        start, end = view.original(place, place + 1)
        assert last <= start < end <= len(text)
        assert view.text[place] in folded(text[start:end]).text
        last = start


def test_a_span_takes_the_hidden_characters_inside_it() -> None:
    text = "«a\u200bb»"
    view = folded(text)
    assert view.text == '"ab"'
    assert view.original(1, 3) == (1, 4)


def test_letters_that_look_like_others_are_those() -> None:
    assert folded("раураl ｅｘａｍｐｌｅ ①② ﬁne café").text == "paypal example 12 fine cafe"  # noqa: RUF001

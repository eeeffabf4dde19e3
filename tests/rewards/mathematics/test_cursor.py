"""Steps among tokens: what is next, what is taken, and what is put in place of others."""

from __future__ import annotations

import pytest

from rewards.mathematics.cursor import TokenCursor
from rewards.mathematics.tokens import Token
from rewards.mathematics.values import MathError


def cursor(*tokens: tuple[str, str]) -> TokenCursor:
    return TokenCursor([Token(kind, text) for kind, text in tokens])  # type: ignore[arg-type]


def rest(tokens: TokenCursor) -> list[str]:
    return [token.text for token in tokens.rest()]


@pytest.fixture
def tokens() -> TokenCursor:
    return cursor(("word", "a"), ("sign", "{"), ("command", "frac"), ("text", " b "), ("sign", "}"))


def test_tokens_are_seen_ahead_and_behind_and_nothing_beyond_the_ends(tokens: TokenCursor) -> None:
    def seen(*places: int) -> list[str | None]:
        found = [tokens.peek(place) for place in places]
        return [token and token.text for token in found]

    assert tokens.behind() is None
    assert seen(0, 1, 4, 5) == ["a", "{", "}", None]
    tokens.skip()
    tokens.skip(2)
    assert (tokens.behind().text, tokens.behind(3).text, tokens.behind(4)) == ("frac", "a", None)  # type: ignore[union-attr]
    assert seen(0, 1, 2) == [" b ", "}", None]
    tokens.back()
    assert rest(tokens) == ["frac", " b ", "}"]
    assert [tokens.next().text for _ in range(3)] == ["frac", " b ", "}"]
    with pytest.raises(MathError, match="ends too early"):
        tokens.next()
    assert rest(tokens) == []


def test_only_what_is_looked_for_is_taken(tokens: TokenCursor) -> None:
    assert (tokens.take_sign("a"), tokens.take_command("a"), tokens.take_word("b")) == ("", "", False)
    assert rest(tokens)[0] == "a"
    assert tokens.take_word("x", "a")
    assert (tokens.is_sign("{"), tokens.is_sign("}"), tokens.is_command("{")) == (True, False, False)
    assert tokens.take_sign("(", "{") == "{"
    assert (tokens.is_command("frac"), tokens.is_sign("frac"), tokens.take_sign("frac")) == (True, False, "")
    assert tokens.take_command("frac") == "frac"
    assert tokens.take_word("b"), "a text that is a word"
    tokens.expect("}")
    assert rest(tokens) == []
    with pytest.raises(MathError, match="^'}' is missing$"):
        tokens.expect("}")
    assert not tokens.is_sign("}")
    assert (tokens.take_sign("}"), tokens.take_word("b")) == ("", False)


def test_a_sign_that_is_missing_is_named_with_what_stands_there(tokens: TokenCursor) -> None:
    with pytest.raises(MathError, match="^'}' is missing before 'a'$"):
        tokens.expect("}")
    assert rest(tokens)[0] == "a"


def test_a_name_in_braces_is_all_that_stands_in_them(tokens: TokenCursor) -> None:
    tokens.skip()
    assert tokens.braced_name() == "frac b "
    assert rest(tokens) == []
    with pytest.raises(MathError, match="is missing"):
        tokens.braced_name()
    with pytest.raises(MathError, match="ends too early"):
        cursor(("sign", "{"), ("word", "a")).braced_name()


def test_tokens_are_put_in_place_of_others(tokens: TokenCursor) -> None:
    tokens.insert(Token("word", "first"))
    assert rest(tokens)[:2] == ["first", "a"]
    tokens.replace(Token("word", "begin"))
    assert rest(tokens)[:2] == ["begin", "a"]
    tokens.skip()
    tokens.split([Token("word", "be"), Token("word", "gin")])
    assert (tokens.behind().text, rest(tokens)[:2]) == ("be", ["gin", "a"])  # type: ignore[union-attr]

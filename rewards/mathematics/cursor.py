"""A place among tokens: what stands there, what is taken, and the few tokens that are put in place of others."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.mathematics.tokens import Token
from rewards.mathematics.values import MathError


class TokenCursor:
    """Tokens, read from left to right. A method called `take` moves on only where it finds what it looks for."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._position = 0

    def peek(self, ahead: int = 0) -> Token | None:
        """The next token, or one `ahead` of it; None beyond the end."""
        place = self._position + ahead
        return self._tokens[place] if place < len(self._tokens) else None

    def behind(self, back: int = 1) -> Token | None:
        """The token just read, or one further `back`; None before the begin."""
        place = self._position - back
        return self._tokens[place] if place >= 0 else None

    def rest(self) -> Sequence[Token]:
        """All that were not read yet."""
        return self._tokens[self._position :]

    def next(self) -> Token:
        """Reads a token. Raises `MathError` at the end."""
        token = self.peek()
        if token is None:
            raise MathError("it ends too early")
        self._position += 1
        return token

    def skip(self, count: int = 1) -> None:
        self._position += count

    def back(self) -> None:
        """Makes the token just read the next one."""
        self._position -= 1

    def insert(self, token: Token) -> None:
        """Puts a token before the next one."""
        self._tokens.insert(self._position, token)

    def replace(self, token: Token) -> None:
        """Puts a token in place of the next one."""
        self._tokens[self._position] = token

    def split(self, parts: Sequence[Token]) -> None:
        """Puts tokens in place of the one just read, and goes on after the first of them."""
        self._tokens[self._position - 1 : self._position] = parts

    def is_sign(self, text: str) -> bool:
        token = self.peek()
        return token is not None and token.kind == "sign" and token.text == text

    def is_command(self, text: str) -> bool:
        token = self.peek()
        return token is not None and token.kind == "command" and token.text == text

    def take_sign(self, *texts: str) -> str:
        """The sign that was taken, empty if none of them is next."""
        return self._take("sign", texts)

    def take_command(self, *texts: str) -> str:
        """The command that was taken, empty if none of them is next."""
        return self._take("command", texts)

    def take_word(self, *texts: str) -> bool:
        """Whether a word, or a text that is one, was taken."""
        token = self.peek()
        if token is None or token.kind not in ("word", "text") or token.text.strip() not in texts:
            return False
        self._position += 1
        return True

    def expect(self, text: str) -> None:
        """Takes a sign. Raises `MathError` if another token is next."""
        if not self.take_sign(text):
            found = self.peek()
            raise MathError(f"{text!r} is missing before {found.text!r}" if found else f"{text!r} is missing")

    def braced_name(self) -> str:
        """The texts of the tokens in the braces that come next. Raises `MathError` without braces."""
        self.expect("{")
        found = ""
        while not self.take_sign("}"):
            found += self.next().text
        return found

    def _take(self, kind: str, texts: Sequence[str]) -> str:
        token = self.peek()
        if token is None or token.kind != kind or token.text not in texts:
            return ""
        self._position += 1
        return token.text

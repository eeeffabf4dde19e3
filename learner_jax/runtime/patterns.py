"""Regular expressions that a person chose, on text that a model wrote: each search has a bound.

Such a pair can keep Python's own `re` busy for years, and nothing can stop it; `regex` gives up in time.
"""

from __future__ import annotations

import time
from typing import Any

from learner_jax.runtime.errors import WeirError

#: Sensible patterns take milliseconds on the longest answers.
SEARCH_S = 1.0


class PatternError(WeirError, ValueError):
    """A text is no regular expression."""

    can_heal = False


class SlowPatternError(WeirError, RuntimeError):
    """A search took too long: the expression backtracks without end on this text."""


class Pattern:
    """A regular expression whose every search ends within about `limit_s` (by default `SEARCH_S`) seconds of CPU time.

    Searches let go of the GIL. Syntax: that of PyPI's `regex`, which takes what `re` takes.

    Raises:
      PatternError: it is none.
    """

    def __init__(
        self, text: str, *, ignore_case: bool = False, dot_all: bool = False, limit_s: float | None = None
    ) -> None:
        import regex  # where none is used, nothing is loaded

        flags = (regex.IGNORECASE if ignore_case else 0) | (regex.DOTALL if dot_all else 0)
        self.text = text
        self._limit_s = SEARCH_S if limit_s is None else limit_s
        try:
            self._compiled = regex.compile(text, flags)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise PatternError(f"{text[:200]!r} is no regular expression: {error}") from None

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere. Raises `SlowPatternError`."""
        try:
            return self._compiled.search(text, timeout=self._limit_s, concurrent=True) is not None
        except TimeoutError:
            raise self._slow(text) from None

    def last_in(self, text: str) -> str | None:
        """The last match, or its group 1 where there is one; None without a match. Raises `SlowPatternError`."""
        last: Any = None
        started = time.monotonic()
        try:
            for match in self._compiled.finditer(text, timeout=self._limit_s, concurrent=True):
                last = match
                if time.monotonic() - started > self._limit_s:
                    raise self._slow(text)
        except TimeoutError:
            raise self._slow(text) from None
        if last is None:
            return None
        return (last[1] if self._compiled.groups else last[0]) or ""

    def _slow(self, text: str) -> SlowPatternError:
        return SlowPatternError(
            f"the regular expression {self.text[:100]!r} took longer than {self._limit_s:g} s on a text of "
            f"{len(text)} characters; write it so that no part can match the same text in several ways"
        )

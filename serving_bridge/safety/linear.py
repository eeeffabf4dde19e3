"""Patterns in linear time: RE2 has no backtracking, so no text can hold a guard up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import re2

#: One text can't have more matches of one pattern than this; the rest is taken as one match to its end.
MAX_MATCHES = 20_000
_MEMORY_BYTES = 64 << 20


class Match(NamedTuple):
    """Where a named pattern matched, and its first group (the whole if it has none)."""

    name: str
    start: int
    end: int


def compiled(pattern: str, *, any_case: bool = False) -> re2._Regexp:
    """A pattern for ASCII bytes.

    Raises:
      re2.error: RE2 does not take it, such as a look-around or a back-reference.
    """
    return re2.compile(pattern.encode("ascii"), _options(any_case))


class PatternSet:
    """Named patterns that are looked for together: one pass finds which are there, and only those are then located."""

    def __init__(self, patterns: Mapping[str, str], *, any_case: bool = False) -> None:
        self._patterns = [(name, compiled(pattern, any_case=any_case)) for name, pattern in patterns.items()]
        self._set = re2.Set.SearchSet(_options(any_case))
        for pattern in patterns.values():
            self._set.Add(pattern.encode("ascii"))
        self._set.Compile()

    def matches(self, text: str) -> Iterator[Match]:
        """All matches of all patterns in an ASCII text, pattern by pattern.

        A pattern with a group gives the group's span.
        """
        content = text.encode("ascii")
        for index in sorted(self._set.Match(content) or ()):
            name, pattern = self._patterns[index]
            yield from _located(name, pattern, content)


def _located(name: str, pattern: re2._Regexp, content: bytes) -> Iterator[Match]:
    group = 1 if pattern.groups else 0
    for count, match in enumerate(pattern.finditer(content)):
        if count == MAX_MATCHES:
            yield Match(name, match.start(), len(content))
            return
        start, end = match.span(group)
        if start >= 0:
            yield Match(name, start, end)


def _options(any_case: bool) -> re2.Options:
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES
    options.log_errors = False
    options.case_sensitive = not any_case
    options.encoding = re2.Options.Encoding.LATIN1
    return options

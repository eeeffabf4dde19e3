"""The readings of a text that hides its words: with digits for letters, spaced out, encoded, reversed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from serving_bridge.safety.folding import folded
from serving_bridge.safety.payloads import MAX_DEPTH, payloads, rotated

_DIGITS = str.maketrans("013457@$!|", "oieastasil")
#: A word that has digits or signs between its letters, such as "b0mb" or "k!ll".
_MIXED = re.compile(r"(?<![\w@$!|])(?=[\w@$!|]{0,30}[A-Za-z])[A-Za-z013457@$!|]{2,30}(?![\w@$|])")
#: "b o m b", "b.o.m.b", "b-o-m-b": letters one by one.
_SPACED = re.compile(r"(?<![A-Za-z0-9])(?:[A-Za-z][ .\-_*]{1,2}){3,60}[A-Za-z](?![A-Za-z0-9])")
_BROKEN = re.compile(r"(?<=[A-Za-z])[*_~^`|](?=[A-Za-z])")
#: English has many of these: a text that has more of them when turned around is read so.
_COMMON = re.compile(r"\b(?:the|a|an|to|of|and|in|is|how|do|can|you|for|i|what|me|my|with|on|it)\b")
_LONGEST_TURNED = 20_000


@dataclass(frozen=True)
class Reading:
    """One way to read a folded text.

    Attributes:
      is_in_place: whether every character stands where it stands in the text.
    """

    text: str
    is_in_place: bool


def readings(text: str, depth: int = MAX_DEPTH) -> Iterator[Reading]:
    """All readings of a folded text that differ; what is decoded is read in the same ways, within bounds."""
    yield Reading(text, True)
    plain = _MIXED.sub(lambda match: _letters(match.group()), text)
    if plain != text:
        yield Reading(plain, True)
    closed = _BROKEN.sub("", _SPACED.sub(_closed, plain))
    if closed != plain:
        yield Reading(closed, False)
    if not depth:
        return
    for payload in payloads(text):
        for reading in readings(folded(payload.text).text, depth - 1):
            yield Reading(reading.text, False)
    if len(text) < _LONGEST_TURNED:
        known = len(_COMMON.findall(text.lower()))
        for turned in (rotated(text), text[::-1]):
            if len(_COMMON.findall(turned.lower())) > known:
                yield Reading(turned, False)


def _letters(word: str) -> str:
    has_letter = any(character.isalpha() for character in word)
    return word.translate(_DIGITS) if has_letter and not word.isalpha() else word


def _closed(match: re.Match[str]) -> str:
    """The letters together; two or more spaces, or another sign than between the letters, end a word."""
    return re.sub(r"(?<=\w)[.\-_* ](?=\w)", "", match.group())

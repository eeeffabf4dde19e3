"""Words, sentences and paragraphs of a text, counted as a careful reader counts them."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")
_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]*_]*(?=\s|$)|[\u3002\uff01\uff1f\u0964]+")
_LAST_TOKEN = re.compile(r"(\S+)$")
#: a full stop after these ends no sentence
_TITLES = "mr mrs ms dr prof sr jr st rev gen col capt lt sgt hon gov sen rep pres messrs mt ft"
_MONTHS = "jan feb mar apr jun jul aug sep sept oct nov dec"
_OTHERS = "vs v cf al fig no vol pp ed eds approx dept est e.g i.e viz"
_ABBREVIATIONS = frozenset(f"{_TITLES} {_MONTHS} {_OTHERS}".split(" "))
#: and after these only if a word in lower case, or a number, follows
_TIMES_AND_PLACES = "a.m p.m u.s u.k u.n d.c e.u"
_AFTER_NAMES = "etc ph.d b.a m.a inc ltd co corp jr sr"
_MAYBE_LAST = frozenset(f"{_TIMES_AND_PLACES} {_AFTER_NAMES}".split(" "))
_INITIAL = re.compile(r"[A-Z]|(?:[A-Za-z]\.)+[A-Za-z]")
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*(?:[*\-#>]\s*)?\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})\.$")
_MAX_TOKEN = 40


def words(text: str) -> list[str]:
    """The words: letters and digits, with the apostrophes and hyphens inside: "don't" and "well-known" are one each."""
    return _WORD.findall(text)


def num_sentences(text: str) -> int:
    """Number of sentences. A rest with words in it, without a mark at its end, is one too."""
    count, begin = 0, 0
    for match in _END.finditer(text):
        if match[0].startswith(".") and not _ends(text, begin, match):
            continue
        count += _has_word(text[begin : match.end()])
        begin = match.end()
    return count + _has_word(text[begin:])


def paragraphs(text: str) -> list[str]:
    """What blank lines separate, without blanks around it."""
    return [part.strip() for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _ends(text: str, begin: int, match: re.Match[str]) -> bool:
    """Whether a full stop ends the sentence, and is no abbreviation's, initial's or list number's."""
    before = text[max(begin, match.start() - _MAX_TOKEN) : match.start()]
    if _LIST_NUMBER.search(before + "."):
        return False
    token = found[1].lstrip("(\"'[*_\u201c\u2018") if (found := _LAST_TOKEN.search(before)) else ""
    following = text[match.end() :][:80].lstrip(" \t\"'(*_\u201c\u2018")[:1]
    if token.lower() in _MAYBE_LAST:
        return not following or following.isupper() or following == "\n"
    if token.lower() == "no":
        return not following.isdigit()
    if token.lower() in _ABBREVIATIONS:
        return not following or following == "\n"
    if token != "I" and _INITIAL.fullmatch(token):
        return not following or following == "\n"
    return True

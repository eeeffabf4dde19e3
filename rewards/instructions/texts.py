"""Words, sentences and paragraphs of a text, counted as a careful reader counts them, in any script."""

from __future__ import annotations

import re
import unicodedata

import regex

#: letters with their marks, which `re` takes for ends of words: Hindi, Thai, Arabic
_LETTERS = r"[\p{L}\p{M}\p{N}_]+"
_NUMBER = r"\p{Nd}{1,3}(?:,\p{Nd}{3})+(?:\.\p{Nd}+)?|\p{Nd}+\.\p{Nd}+"
_WORD = regex.compile(rf"(?:{_NUMBER})(?![\p{{L}}\p{{M}}\p{{N}}_])|{_LETTERS}(?:['\u2019\-]{_LETTERS})*")
_FORMAT = regex.compile(r"\p{Cf}+")
_BLANKS = re.compile(r"\s+")
#: what shows ink; fillers of Hangul, selectors of variants and the empty Braille cell are letters or marks without any
_SEEN = regex.compile(r"[^\s\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]")
#: Unicode's own bound of marks on one letter (UAX 15, Stream-Safe Text Format); sorting more takes quadratic time
_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
_APOSTROPHES = str.maketrans("\u2019\u2018\u02bc", "'''")
_WORD_BEFORE, _WORD_AFTER = r"(?<![\p{L}\p{M}\p{N}])", r"(?![\p{L}\p{M}\p{N}])"
#: scripts that put no blanks between words
_NO_BLANKS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
#: marks of Chinese, Japanese, Hindi, Arabic, Urdu, Ethiopic and Burmese, after which no blank need follow
_OTHER_ENDS = "\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u1362\u1367\u104b"
_END = re.compile(rf"[.!?\u2026]+[\"'\u201d\u2019)\]*_]*(?=\s|$)|[{_OTHER_ENDS}]+")
_QUOTED = re.compile(r"[!?\u2026]+[\"'\u201d\u2019]")
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
    """The words: letters and digits, with the apostrophes and hyphens inside: "don't" and "well-known" are one each.

    So are "3.14" and "1,000". Characters that can't be seen part no words.
    """
    return [word for word in _WORD.findall(composed(text)) if _has_word(word)]


def composed(text: str) -> str:
    """The text with each letter and its marks as one character, where there is one, and nothing that can't be seen."""
    return unicodedata.normalize("NFC", _seen(text))


def folded(text: str) -> str:
    """The text as words are compared: less case, ligatures, full width, kinds of blanks and of apostrophes.

    Characters that can't be seen, such as soft hyphens, are left out.
    """
    plain = unicodedata.normalize("NFKC", _seen(text)).casefold().translate(_APOSTROPHES)
    return _BLANKS.sub(" ", plain)


def has_words(text: str, wanted: str) -> bool:
    """Whether whole words stand in a text; both are `folded`. Scripts without blanks have no ends of words."""
    wanted = wanted.strip()
    before = "" if _NO_BLANKS.match(wanted) else _WORD_BEFORE
    after = "" if _NO_BLANKS.match(wanted[-1:]) else _WORD_AFTER
    return regex.search(before + regex.escape(wanted) + after, text) is not None


def ends_in(text: str, wanted: str) -> bool:
    """Whether a text ends in these words; both are `folded`."""
    if not wanted or not text.endswith(wanted):
        return False
    before = text[: -len(wanted)][-1:]
    return not (before.isalnum() and wanted[0].isalnum()) or _NO_BLANKS.match(wanted) is not None


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen."""
    return _SEEN.search(text) is None


def _seen(text: str) -> str:
    return _FORMAT.sub("", _MANY_MARKS.sub(r"\1", text))


def num_sentences(text: str) -> int:
    """Number of sentences. A rest with words in it, without a mark at its end, is one too."""
    count, begin = 0, 0
    for match in _END.finditer(text):
        if match[0].startswith(".") and not _ends(text, begin, match):
            continue
        if _QUOTED.search(match[0]) and _following(text, match).islower():  # "Stop!" he said.
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
    following = _following(text, match)
    if token.lower() in _MAYBE_LAST:
        return not following or following.isupper() or following == "\n"
    if token.lower() == "no":
        return not following.isdigit()
    if token.lower() in _ABBREVIATIONS:
        return not following or following == "\n"
    if token != "I" and _INITIAL.fullmatch(token):
        return not following or following == "\n"
    return True


def _following(text: str, match: re.Match[str]) -> str:
    """The first letter behind a mark, or the end of its line."""
    return text[match.end() : match.end() + 80].lstrip(" \t\"'(*_\u201c\u2018")[:1]

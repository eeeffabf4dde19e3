"""A text as the patterns read it: ASCII, one character for each of the text's that can be seen, with the way back.

Full-width digits, accents, look-alike letters and zero-width characters hide text from a pattern, not from a reader.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

#: Stand for letters, and for all else, that ASCII has nothing like; patterns may name the first.
OTHER_LETTER, OTHER = "\x01", "\x02"

#: Letters of other alphabets that look like Latin ones (Unicode's confusables, the common part).
_LOOK_ALIKES = dict(
    zip(
        "аеорсухіјѕһԁԛԝвкмнтАВЕЅІЈКМНОРСТУХαοτρνικυχγωβΑΒΕΖΗΙΚΜΝΟΡΤΥΧıłøßđ‐‑‒–—―−﹘﹣‘’“”«»․。．｡•∙⋅·٠۰",  # noqa: RUF001  (their likeness is the point)
        'aeopcyxijshdqwbkmhtABESIJKMHOPCTYXaotpvikuxywbABEZHIKMNOPTYXilosd---------\'\'""""........00',
        strict=True,
    )
)


class _Folds(dict[int, str]):
    """Code point -> what stands for it; made at first use, bounded by the number of code points."""

    def __missing__(self, point: int) -> str:
        found = self[point] = _fold(chr(point))
        return found


def _fold(character: str) -> str:
    if character < "\x80":
        return character if character.isprintable() or character in "\t\n\r" else OTHER
    if alike := _LOOK_ALIKES.get(character):
        return alike
    category = unicodedata.category(character)
    if category in ("Cf", "Mn", "Me", "Cc") or character in "\u115f\u1160\u3164\uffa0":
        return "" if category != "Cc" else OTHER
    if category.startswith("Z"):
        return "\n" if category in ("Zl", "Zp") else " "
    if (digit := unicodedata.digit(character, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKD", character).replace("\u20e3", "")
    letters = "".join(_LOOK_ALIKES.get(part, part) for part in plain if not unicodedata.combining(part))
    if letters.isascii() and letters:
        return letters
    return OTHER_LETTER if category.startswith("L") else OTHER


_FOLDS = _Folds()


@dataclass(frozen=True)
class Folded:
    """A text in ASCII, and where its characters come from.

    Attributes:
      text: ASCII; a place in it is also a place in its bytes.
      places: of each character, and of the end, in the original; None where all are the same.
    """

    text: str
    places: Sequence[int] | None

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original text that became `text[start:end]`, hidden characters inside included."""
        if self.places is None:
            return start, end
        return self.places[start], self.places[end - 1] + 1 if end > start else self.places[start]


def folded(text: str) -> Folded:
    """Folds a text in time and memory linear in its length."""
    if text.isascii() and text.isprintable():
        return Folded(text, None)
    found = text.translate(_FOLDS)
    if len(found) == len(text) and all(len(_FOLDS[ord(character)]) == 1 for character in set(text)):
        return Folded(found, None)
    places = [place for place, character in enumerate(text) for _ in _FOLDS[ord(character)]]
    return Folded(found, [*places, len(text)])

"""The language of a text, by the profiles of langdetect: the same text always gives the same language."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_MAX_CHARACTERS = 20_000
#: With fewer letters the profiles guess: plain letters are taken for English if that is possible, very few always.
_FEW_LETTERS, _VERY_FEW_LETTERS = 25, 12
_CLEAR = 0.999


@lru_cache(maxsize=1)
def _factory() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.seed = 0
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


def languages() -> frozenset[str]:
    """Codes of the languages that are told apart (ISO 639-1, with "zh-cn" and "zh-tw")."""
    return frozenset(_factory().langlist)


def probabilities(text: str) -> dict[str, float]:
    """The languages that a text may be in, the likeliest first; none if it has no letters."""
    from langdetect.lang_detect_exception import LangDetectException

    sample = text[:_MAX_CHARACTERS].encode("utf-8", "replace").decode().lower()
    detector = _factory().create()
    detector.append(sample)
    try:
        return {str(found.lang): float(found.prob) for found in detector.get_probabilities()}
    except LangDetectException:
        return {}


def is_in(text: str, language: str) -> bool:
    """Whether a text is in a language; "zh" stands for both of its scripts."""
    likeliest = next(iter(probabilities(text)), "")
    return likeliest == language or likeliest.startswith(f"{language}-")


def may_be_english(text: str) -> bool:
    """Whether a text is in English, or too short to be told from it."""
    letters = [character for character in text[:_MAX_CHARACTERS] if character.isalpha()]
    if not letters:
        return False
    is_plain = all(character.isascii() for character in letters)
    if is_plain and len(letters) < _VERY_FEW_LETTERS:
        return True
    found = probabilities(text)
    likeliest, probability = next(iter(found.items()), ("", 0.0))
    if likeliest == "en":
        return True
    return is_plain and len(letters) < _FEW_LETTERS and ("en" in found or probability < _CLEAR)

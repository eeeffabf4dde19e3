"""Units of measure: which spellings are one unit, and how units of one kind convert."""

from __future__ import annotations

import re
from fractions import Fraction

#: unit: (what it measures, how many of the first unit of that it is), spellings
_TABLE: tuple[tuple[str, str, Fraction, str], ...] = (
    ("m", "length", Fraction(1), "meter metre"),
    ("cm", "length", Fraction(1, 100), "centimeter centimetre"),
    ("mm", "length", Fraction(1, 1000), "millimeter millimetre"),
    ("km", "length", Fraction(1000), "kilometer kilometre"),
    ("in", "length'", Fraction(1), "inch inche"),
    ("ft", "length'", Fraction(12), "foot feet"),
    ("yd", "length'", Fraction(36), "yard"),
    ("mi", "length'", Fraction(63360), "mile"),
    ("s", "time", Fraction(1), "second sec"),
    ("min", "time", Fraction(60), "minute"),
    ("h", "time", Fraction(3600), "hour hr"),
    ("day", "time", Fraction(86400), ""),
    ("week", "time", Fraction(604800), ""),
    ("g", "mass", Fraction(1), "gram"),
    ("kg", "mass", Fraction(1000), "kilogram"),
    ("mg", "mass", Fraction(1, 1000), "milligram"),
    ("lb", "mass'", Fraction(16), "pound"),
    ("oz", "mass'", Fraction(1), "ounce"),
    ("l", "volume", Fraction(1), "liter litre"),
    ("ml", "volume", Fraction(1, 1000), "milliliter millilitre"),
    ("$", "dollar", Fraction(1), "dollar usd buck"),
    ("cent", "dollar", Fraction(1, 100), "¢"),
    ("€", "euro", Fraction(1), "euro eur"),
    ("£", "sterling", Fraction(1), "gbp"),
    ("¥", "yen", Fraction(1), "yen jpy"),
    ("%", "percent", Fraction(1), "percent pct"),
    ("deg", "angle", Fraction(1), "degree °"),
    ("rad", "radian", Fraction(1), "radian"),
)
_UNITS = {name: (kind, factor) for name, kind, factor, _ in _TABLE}
_SPELLINGS = {spelling: name for name, _, _, spellings in _TABLE for spelling in (name, *spellings.split())}
_SHORT = {"mph": "mi/h", "kmh": "km/h", "kph": "km/h", "kmph": "km/h"}
_POWER = re.compile(r"(.+?)\s*\^?\s*([23])")


def unit_of(text: str) -> str:
    """One spelling for a unit: "square centimeters" gives "cm^2", "kilometers per hour" gives "km/h".

    Unknown words stay, in lower case.
    """
    words = " ".join(re.sub(r"[{}]", "", text).strip(" .").split())
    for between in ("/", " per "):
        over, found, under = words.partition(between)
        if found and over.strip() and under.strip():
            return f"{unit_of(over)}/{unit_of(under)}"
    lower = words.lower()
    if lower in _SHORT:
        return _SHORT[lower]
    if (half := lower.replace(".", "")) in ("am", "pm"):
        return half
    for word, power in (("square ", "2"), ("sq. ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if lower.startswith(word):
            return f"{unit_of(words[len(word) :])}^{power}"
    for word, power in ((" squared", "2"), (" cubed", "3")):
        if lower.endswith(word):
            return f"{unit_of(words[: -len(word)])}^{power}"
    if (match := _POWER.fullmatch(words)) and (base := unit_of(match[1])) in _UNITS:
        return f"{base}^{match[2]}"
    for spelling in (words, lower, lower.removesuffix("s")):
        if spelling in _SPELLINGS:
            return _SPELLINGS[spelling]
    return lower.removesuffix("s")


def is_unit(word: str) -> bool:
    """Whether a word of two letters or more is a unit by itself."""
    return len(word) > 1 and unit_of(word).split("^")[0] in _UNITS


def conversion(unit: str, into: str) -> Fraction | None:
    """Factor from a unit into another; None if they don't measure the same."""
    if unit == into:
        return Fraction(1)
    (name, _, power), (other, _, other_power) = unit.partition("^"), into.partition("^")
    if name not in _UNITS or other not in _UNITS or power != other_power or _UNITS[name][0] != _UNITS[other][0]:
        return None
    return (_UNITS[name][1] / _UNITS[other][1]) ** int(power or 1)

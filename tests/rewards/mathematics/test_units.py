"""Units: their spellings, and how many of one are another."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rewards.mathematics.units import conversion, is_unit, unit_of


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("cm", "cm"), ("Centimeters", "cm"), ("square centimeters", "cm^2"), ("sq. cm", "cm^2"), ("sq feet", "ft^2"),
        ("cubic meters", "m^3"), ("meters squared", "m^2"), ("cm cubed", "cm^3"), ("cm^2", "cm^2"), ("cm^{3}", "cm^3"),
        ("m2", "m^2"), ("$", "$"), ("USD", "$"), ("Apples", "apple"), ("red  apples.", "red apple"), ("x^2", "x^2"),
    ],
)  # fmt: skip
def test_one_unit_has_one_spelling(text: str, unit: str) -> None:
    assert unit_of(text) == unit


@pytest.mark.parametrize(
    ("unit", "into", "factor"),
    [
        ("km", "m", 1000), ("mm", "cm", "1/10"), ("m^2", "cm^2", 10_000), ("cm^3", "m^3", "1/1000000"),
        ("ft", "in", 12), ("h", "min", 60), ("apple", "apple", 1), ("m", "in", None),
        ("m", "m^2", None), ("m^2", "m^3", None), ("apple", "m", None),
        ("m", "apple", None), ("$", "cent", 100), ("$", "€", None), ("kg", "lb", None),
    ],
)  # fmt: skip
def test_units_of_one_kind_convert(unit: str, into: str, factor: object) -> None:
    assert conversion(unit, into) == (None if factor is None else Fraction(str(factor)))


def test_letters_alone_are_variables_and_no_units() -> None:
    assert [is_unit(word) for word in ("m", "cm", "apples", "cm^2", "degrees")] == [False, True, False, True, True]

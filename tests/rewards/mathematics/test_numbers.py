"""Arithmetic of expressions: exact where it is rational, and where exactly it stops."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from rewards.mathematics import numbers
from rewards.mathematics.numbers import check_size, equal, has_value, proportional, rational
from rewards.mathematics.values import AbsurdError, Apply, Expression, Name, Number

X, Y, IMAGINARY, OO = Name("x"), Name("y"), Name("i"), Name("oo")


def n(value: object) -> Number:
    return Number(Fraction(str(value)))


def of(function: str, *parts: object) -> Apply:
    return Apply(function, tuple(part if isinstance(part, Number | Name | Apply) else n(part) for part in parts))


EXACT: list[tuple[Expression, object]] = [
    (of("add", "1/2", "1/3"), "5/6"), (of("multiply", "2/3", "3/4"), "1/2"), (of("divide", 1, 3), "1/3"),
    (of("divide", 1, 0), None), (of("negate", 3), -3), (of("abs", -3), 3), (of("floor", "-3/2"), -2),
    (of("ceil", "-3/2"), -1), (of("sqrt", "4/9"), "2/3"), (of("sqrt", 0), 0), (of("sqrt", 2), None),
    (of("sqrt", "4/3"), None), (of("sqrt", -4), None), (of("factorial", 5), 120), (of("factorial", 0), 1),
    (of("factorial", "1/2"), None), (of("factorial", -1), None), (of("binomial", 5, 2), 10),
    (of("binomial", 5, 5), 1), (of("binomial", 5, 0), 1), (of("binomial", 2, 5), None), (of("binomial", 5, -1), None),
    (of("binomial", "5/2", 1), None), (of("binomial", 5, "1/2"), None), (of("binomial", 500, 1), 500),
    (of("power", 2, 10), 1024), (of("power", 2, -1), "1/2"), (of("power", 0, 1), 0), (of("power", 0, 0), None),
    (of("power", 0, -1), None), (of("power", 4, "1/2"), None), (of("power", -1, 3), -1), (of("power", 1, 20_000), 1),
    (of("power", 2, 8192), 2**8192), (of("add", X, 1), None), (of("power", X, 2), None), (of("sin", 0), None),
    (X, None),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "value"), EXACT)
def test_rational_arithmetic_is_exact(expression: Expression, value: object) -> None:
    assert rational(expression) == (None if value is None else Fraction(str(value)))


@pytest.mark.parametrize(
    "expression",
    [
        of("factorial", 501), of("binomial", 501, 1), of("power", 1, 20_001), of("power", X, -20_001),
        of("power", 2, 8193), of("power", 2, -8193), of("multiply", of("power", 2, 8192), of("power", 2, 8192)),
    ],
)  # fmt: skip
def test_what_is_too_large_is_not_carried_out(expression: Expression) -> None:
    with pytest.raises(AbsurdError):
        rational(expression)


def test_factorials_are_carried_out_up_to_500() -> None:
    assert rational(of("divide", of("factorial", 500), of("factorial", 499))) == 500


def test_an_expression_has_a_bounded_number_of_parts() -> None:
    check_size(Apply("add", (X,) * 500))
    with pytest.raises(AbsurdError, match="more than 500 parts"):
        check_size(Apply("add", (X,) * 501))


ROOT = of("sqrt", 2)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (X, X, True),
        (of("add", X, X), of("multiply", 2, X), True),
        (of("add", X, "1e-25"), X, False),
        (X, Y, False),
        (of("multiply", ROOT, ROOT), n(2), True),
        (of("multiply", ROOT, ROOT), n("2.0000000000000000000000001"), False),
        (of("negate", OO), OO, False),
        (OO, n(5), False),
        (of("divide", X, of("add", X, of("negate", X))), X, False),
        (of("ln", 0), of("ln", 0), True),
        (of("divide", ROOT, 0), ROOT, False),
        (of("power", IMAGINARY, 2), n(-1), True),
        (of("root", -8, 3), n(-2), True),
        (of("root", 16, 4), n(2), True),
        (of("root", -4, 2), of("multiply", 2, IMAGINARY), True),
        (of("log", 8, 2), n(3), True),
        (of("lg", 1000), n(3), True),
        (of("log", of("multiply", X, X)), of("multiply", 2, of("log", X)), False),
        (of("exp", of("ln", 3)), n(3), True),
        (of("arcsin", 1), of("divide", Name("pi"), 2), True),
        (of("floor", ROOT), n(1), True),
        (of("ceil", ROOT), n(2), True),
        (of("abs", X), of("sqrt", of("power", X, 2)), True),
    ],
)
def test_expressions_are_equal_where_their_values_are(one: Expression, other: Expression, same: bool) -> None:
    assert equal(one, other) is same
    assert equal(other, one) is same


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [
        (X, of("multiply", 2, X), 1),
        (X, of("multiply", -2, X), -1),
        (X, of("add", X, 1), 0),
        (X, of("add", X, of("negate", X)), 0),
        (of("add", X, of("negate", X)), X, 0),
        (of("multiply", IMAGINARY, X), X, 0),
        (of("multiply", of("add", 1, IMAGINARY), X), X, 0),
        (X, of("power", X, 3), 0),
        (X, of("divide", X, 0), 0),
    ],
)
def test_one_expression_is_a_constant_times_another_or_not(one: Expression, other: Expression, sign: int) -> None:
    assert proportional(one, other) == sign


@pytest.mark.parametrize(
    ("expression", "has_one"),
    [
        (n(3), True),
        (ROOT, True),
        (X, True),
        (of("divide", 1, 0), False),
        (of("divide", 1, of("add", X, of("negate", X))), False),
    ],
)
def test_an_expression_has_a_value_where_it_is_defined(expression: Expression, has_one: bool) -> None:
    assert has_value(expression) is has_one


def test_no_two_variables_have_their_signs_together() -> None:
    for one, other in itertools.combinations([Name(letter) for letter in "abcmnxyz"], 2):
        apart, together = of("add", of("abs", one), of("abs", other)), of("abs", of("add", one, other))
        assert not equal(apart, together), (one, other)
        assert not equal(apart, of("abs", of("add", one, of("negate", other)))), (one, other)
    names = frozenset("abcdefg")
    for one, other in itertools.combinations(sorted(names), 2):
        assert len({(point[one] > 0, point[other] > 0) for point in numbers._points(names)}) == 4


def test_sines_of_large_arguments_are_not_carried_out() -> None:
    assert equal(of("sin", of("multiply", 1000, ROOT)), of("sin", of("multiply", 1000, ROOT)))
    assert not equal(of("sin", 1000), n(0))
    with pytest.raises(AbsurdError, match="argument of sin is too large"):
        equal(of("sin", "1000.001"), n(0))


@pytest.mark.parametrize("exponent", [3000, -3000], ids=["large", "small"])
def test_values_are_no_larger_or_smaller_than_80000_bits(exponent: int) -> None:
    """Powers are bounded one by one; their products would grow without a bound. This one has 4954 bits."""
    product = of("power", Name("pi"), exponent)
    for _ in range(4):
        product = of("multiply", product, product)
    assert equal(product, product)
    with pytest.raises(AbsurdError, match="a value is too large"):
        equal(of("multiply", product, product), n(1))

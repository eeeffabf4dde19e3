"""Whether two expressions are equal: exactly where they are rational, else to 30 digits at several points.

Expressions with variables are compared at fixed points, positive and negative, where their values are computed to 50
digits. Two formulas that differ agree at all of them only by a coincidence that nobody has seen; a proof it is not.
Every power, factorial and value is bounded before it is computed, so that no expression takes long.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rewards.mathematics.values import AbsurdError, Apply, Expression, MathError, Name, Number, names_in, nodes

_DIGITS = 50
_AGREEMENT = 1e-30
_MAX_BITS = 4096
_MAX_LOG2 = 20_000.0
_MAX_NODES = 500
_MAX_FACTORIAL = 500
_POINTS = 8
#: Bits of a point's number whose sum decides a variable's sign: no two variables go together, as |x| + |y| and |x + y|
#: would where they do.
_SIGNS = (1, 2, 4, 3, 5, 6, 7)
_MIN_POINTS = 3
_UNKNOWN_BASE = "6.2384729"
_local = threading.local()


class _Undefined(Exception):
    """An expression has no value at a point."""


def check_size(expression: Expression) -> None:
    """AbsurdError for an expression with more parts than an answer has."""
    for count, _ in enumerate(nodes(expression)):
        if count > _MAX_NODES:
            raise AbsurdError(f"it has more than {_MAX_NODES} parts")


def equal(one: Expression, other: Expression) -> bool:
    """Whether two expressions have the same value, for all values of their variables.

    Raises:
      AbsurdError: one is too large to be compared.
    """
    if one == other:
        return True
    first, second = rational(one), rational(other)
    if first is not None and second is not None:
        return first == second
    names = names_in(one) | names_in(other)
    if not names:
        try:
            return _close(_value_at(one, {}), _value_at(other, {}))
        except _Undefined:
            return False
    return _agree(one, other, names)


def has_value(expression: Expression) -> bool:
    """Whether an expression is defined, for several values of its variables if it has any."""
    if rational(expression) is not None:
        return True
    defined = 0
    for point in _points(names_in(expression)):
        try:
            _value_at(expression, point)
            defined += 1
        except _Undefined:
            continue
    return defined >= _MIN_POINTS


def proportional(one: Expression, other: Expression) -> int:
    """1 or -1 if the first is a positive or negative constant times the second, neither being 0; else 0."""
    names, ratios = names_in(one) | names_in(other), []
    for point in _points(names):
        try:
            top, bottom = _value_at(one, point), _value_at(other, point)
        except (_Undefined, MathError):
            continue
        if not top or not bottom or _is_infinite(top) or _is_infinite(bottom):
            return 0
        ratios.append(top / bottom)
    if len(ratios) < _MIN_POINTS or not all(_close(ratio, ratios[0]) for ratio in ratios):
        return 0
    return 1 if ratios[0].real > 0 and abs(ratios[0].imag) < _AGREEMENT else -1 if ratios[0].real < 0 else 0


def rational(expression: Expression) -> Fraction | None:
    """The exact value if it comes of rational arithmetic; None else.

    Raises:
      AbsurdError: a number in it is too large.
    """
    match expression:
        case Number(value):
            return value
        case Apply("power", (base, exponent)):
            return _power(rational(base), rational(exponent))
        case Apply(function, parts):
            values = [rational(part) for part in parts]
            known = [value for value in values if value is not None]
            return _carried_out(function, known) if len(known) == len(values) else None
    return None


def _carried_out(function: str, values: list[Fraction]) -> Fraction | None:
    match function, values:
        case "add", [a, b]:
            result = a + b
        case "multiply", [a, b]:
            result = a * b
        case "divide", [a, b] if b:
            result = a / b
        case "negate", [a]:
            result = -a
        case "abs", [a]:
            result = abs(a)
        case "floor", [a]:
            result = Fraction(math.floor(a))
        case "ceil", [a]:
            result = Fraction(math.ceil(a))
        case "sqrt", [a] if a >= 0:
            top, bottom = math.isqrt(a.numerator), math.isqrt(a.denominator)
            if top * top != a.numerator or bottom * bottom != a.denominator:
                return None
            result = Fraction(top, bottom)
        case "factorial", [a] if a.denominator == 1 and a >= 0:
            if a > _MAX_FACTORIAL:
                raise AbsurdError(f"the factorial of {_MAX_FACTORIAL} is the largest that is carried out")
            result = Fraction(math.factorial(int(a)))
        case "binomial", [n, k] if n.denominator == 1 == k.denominator and 0 <= k <= n:
            if n > _MAX_FACTORIAL:
                raise AbsurdError(f"binomials are carried out up to {_MAX_FACTORIAL}")
            result = Fraction(math.comb(int(n), int(k)))
        case _:
            return None
    return _bounded(result)


def _power(base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
    if exponent is not None and abs(exponent) > _MAX_LOG2:
        raise AbsurdError(f"an exponent is larger than {_MAX_LOG2:g}")
    if base is None or exponent is None or exponent.denominator != 1 or (base == 0 and exponent <= 0):
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and bits * abs(exponent) > 4 * _MAX_BITS:
        raise AbsurdError("a power is too large")
    return _bounded(base ** int(exponent))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * _MAX_BITS:
        raise AbsurdError("a number is too large")
    return value


def _agree(one: Expression, other: Expression, names: frozenset[str]) -> bool:
    compared = 0
    for point in _points(names):
        values = []
        for side in (one, other):
            try:
                values.append(_value_at(side, point))
            except _Undefined:
                values.append(None)
        if (values[0] is None) != (values[1] is None):
            return False
        if values[0] is not None:
            if not _close(values[0], values[1]):
                return False
            compared += 1
    return compared >= _MIN_POINTS


def _points(names: frozenset[str]) -> list[dict[str, Any]]:
    """Values for the variables: small and large, none of them special, any two of seven in all pairs of signs."""
    points = []
    for index in range(_POINTS):
        point = {}
        for number, name in enumerate(sorted(names)):
            seed = zlib.crc32(f"{name}/{index}".encode())
            size = Fraction(1 + seed % 9973, 1009) + Fraction(1, 7 + index)
            is_negative = (index & _SIGNS[number % len(_SIGNS)]).bit_count() % 2
            point[name] = _mp().mpf(size.numerator) / size.denominator * (-1 if is_negative else 1)
        points.append(point)
    return points


def _close(one: Any, other: Any) -> bool:
    if _is_infinite(one) or _is_infinite(other):
        return bool(one == other)
    return bool(abs(one - other) <= _AGREEMENT * max(1, abs(one), abs(other)))


def _mp() -> Any:
    """This thread's context of arithmetic: mpmath's functions change the precision of theirs while they run."""
    if not hasattr(_local, "context"):
        import mpmath  # takes a fifth of the time in which a program starts, and only verifiers compute with it

        _local.context = mpmath.MPContext()
        _local.context.dps = _DIGITS
    return _local.context


def _is_infinite(value: Any) -> bool:
    return bool(_mp().isinf(value.real) or _mp().isinf(value.imag))


def _value_at(expression: Expression, point: Mapping[str, Any]) -> Any:
    check_size(expression)
    try:
        value = _mp().mpc(_value(expression, point))
    except MathError:
        raise
    except (ArithmeticError, ValueError, TypeError):
        raise _Undefined from None
    if _mp().isnan(value.real) or _mp().isnan(value.imag):
        raise _Undefined
    return value


def _value(expression: Expression, point: Mapping[str, Any]) -> Any:
    match expression:
        case Number(value):
            return _mp().mpf(value.numerator) / value.denominator
        case Name(name):
            return _constant(name) if name in ("pi", "e", "i", "oo") else point[name]
        case Apply("power", (base, exponent)):
            return _float_power(_value(base, point), _value(exponent, point))
        case Apply(function, parts):
            return _small(_apply(function, [_value(part, point) for part in parts]))
    raise MathError(f"{expression} has no value")


def _constant(name: str) -> Any:
    return {"pi": +_mp().pi, "e": +_mp().e, "i": _mp().mpc(0, 1), "oo": _mp().inf}[name]


def _float_power(base: Any, exponent: Any) -> Any:
    size = abs(base)
    is_finite = not _is_infinite(_mp().mpc(base)) and not _is_infinite(_mp().mpc(exponent))
    if size and is_finite and abs(exponent) * (abs(_mp().log(size)) + 4) > _MAX_LOG2:
        raise AbsurdError("a power is too large")
    return _small(_mp().power(base, exponent))


def _apply(function: str, values: list[Any]) -> Any:
    match function, values:
        case "add", [a, b]:
            return a + b
        case "multiply", [a, b]:
            return a * b
        case "divide", [a, b]:
            return a / b
        case "negate", [a]:
            return -a
        case "abs", [a]:
            return abs(a)
        case "floor" | "ceil", [a]:
            return _mp().floor(a) if function == "floor" else _mp().ceil(a)
        case "sqrt", [a]:
            return _mp().sqrt(a)
        case "root", [a, n]:
            # The real root of a negative number, where there is one, as it is written in answers.
            is_odd = n == int(n.real) and int(n.real) % 2 == 1
            is_negative = _mp().im(a) == 0 and _mp().re(a) < 0
            return -_mp().power(-a, 1 / n) if is_odd and is_negative else _mp().power(a, 1 / n)
        case "lg", [a]:
            return _mp().log(a, 10)
        case "log", [a]:
            # Without a base it may be either; the laws of logarithms hold for this one as well.
            return _mp().log(a) / _mp().log(_mp().mpf(_UNKNOWN_BASE))
        case "log", [a, base]:
            return _mp().log(a) / _mp().log(base)
        case "ln", [a]:
            return _mp().log(a)
        case "exp", [a]:
            return _float_power(+_mp().e, a)
        case (("sin" | "cos" | "tan" | "cot" | "sec" | "csc" | "sinh" | "cosh" | "tanh"), [a]):
            if abs(a) > 1000:
                raise AbsurdError(f"the argument of {function} is too large")
            return getattr(_mp(), function)(a)
        case (("arcsin" | "arccos" | "arctan"), [a]):
            return getattr(_mp(), function.replace("arc", "a"))(a)
        case "factorial", [a] if abs(a) <= _MAX_FACTORIAL:
            return _mp().factorial(a)
        case "binomial", [n, k] if max(abs(n), abs(k)) <= _MAX_FACTORIAL:
            return _mp().binomial(n, k)
    raise AbsurdError(f"{function} is not carried out here")


def _small(value: Any) -> Any:
    size = abs(value)
    if size and not _mp().isinf(size) and not _mp().isnan(size) and abs(_mp().mag(size)) > 4 * _MAX_LOG2:
        raise AbsurdError("a value is too large")
    return value

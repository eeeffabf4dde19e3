"""A calculator: exact arithmetic of bounded size. The text is parsed, never evaluated as Python."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from learner_jax.runtime import WeirError
from rewards.contracts import ToolDefinition

DEFINITION = ToolDefinition(
    "calculator",
    "Value of an arithmetic expression, such as (12 + 3) * 4 / 7. Knows + - * / // % **, parentheses, pi, e, sqrt, "
    "abs, round, min, max, floor, ceil, exp, log, sin, cos, tan and factorial.",
    {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "the expression"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
)

_MAX_CHARACTERS = 500
_MAX_DEPTH = 40
_MAX_BITS = 4096
_MAX_DIGITS = 30
#: a caret, and the signs of multiplication, division and minus that are no ASCII
_SIGNS = str.maketrans({"^": "**", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"})
Number = Fraction | float


class CalculatorError(WeirError, ValueError):
    """The expression has no value here; says why."""


def calculate(expression: str) -> str:
    """The value as text: exact where that is short, else to 15 digits.

    Raises:
      CalculatorError: it is no arithmetic, or too large.
    """
    text = expression.strip().translate(_SIGNS)
    if len(text) > _MAX_CHARACTERS:
        raise CalculatorError(f"the expression has {len(text)} characters, at most {_MAX_CHARACTERS} are taken")
    depth = 0
    for character in text:  # before Python's parser sees the text: its own limit differs between versions
        depth += (character in "([") - (character in ")]")
        if depth > _MAX_DEPTH:
            raise CalculatorError("the expression is nested too deeply")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CalculatorError("that is no arithmetic expression") from None
    try:
        return _shown(_value(tree, _MAX_DEPTH))
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except (OverflowError, ValueError) as error:
        if isinstance(error, CalculatorError):
            raise
        raise CalculatorError(f"there is no such value: {error}") from None


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise CalculatorError("the expression is nested too deeply")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(_exact(node, value))
        case ast.Name(id="pi"):
            return math.pi
        case ast.Name(id="e"):
            return math.e
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth - 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth - 1)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _bounded(_OPERATORS[type(operator)](_value(left, depth - 1), _value(right, depth - 1)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and arguments:
            return _bounded(_called(name, [_value(argument, depth - 1) for argument in arguments]))
    raise CalculatorError(f"{ast.unparse(node)[:50]!r} is no arithmetic that this calculator knows")


def _exact(node: ast.Constant, value: float) -> Number:
    """A decimal as the fraction that is written, not its nearest binary neighbour."""
    if isinstance(value, int):
        return Fraction(value)
    return Fraction(repr(value)) if value == 0 or 1e-300 < abs(value) < 1e300 else value


def _bounded(value: Number) -> Number:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            raise CalculatorError("the value has too many digits")
    elif not math.isfinite(value):
        raise CalculatorError("the value is not finite")
    return value


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if abs(exponent.numerator) * max(1, size) > _MAX_BITS and abs(base) != 1 and base != 0:
            raise CalculatorError("the value has too many digits")
        return base ** (exponent.numerator if abs(base) != 1 else exponent.numerator % 2)
    value = float(base) ** float(exponent)
    if isinstance(value, complex):
        raise CalculatorError("there is no such real number")
    return value


def _mixed(function: Callable[[Number, Number], Number]) -> Callable[[Number, Number], Number]:
    def of(a: Number, b: Number) -> Number:
        both_exact = isinstance(a, Fraction) and isinstance(b, Fraction)
        return function(a, b) if both_exact else function(float(a), float(b))

    return of


_OPERATORS: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: _mixed(lambda a, b: a + b),
    ast.Sub: _mixed(lambda a, b: a - b),
    ast.Mult: _mixed(lambda a, b: a * b),
    ast.Div: _mixed(lambda a, b: a / b),
    ast.FloorDiv: _mixed(lambda a, b: Fraction(math.floor(a / b))),
    ast.Mod: _mixed(lambda a, b: a % b),
    ast.Pow: _power,
}


def _sqrt(value: Number) -> Number:
    if isinstance(value, Fraction) and value >= 0:
        roots = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if roots[0] ** 2 == value.numerator and roots[1] ** 2 == value.denominator:
            return Fraction(*roots)
    return math.sqrt(float(value))


def _factorial(value: Number) -> Number:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 400:
        raise CalculatorError("factorial takes a whole number from 0 to 400")
    return Fraction(math.factorial(int(value)))


def _rounded(value: Number, digits: Number = Fraction(0)) -> Number:
    if not -50 <= digits <= 50 or int(digits) != digits:
        raise CalculatorError("round takes a whole number of digits from -50 to 50")
    return Fraction(round(Fraction(value), int(digits)))


def _log(value: Number, base: Number | None = None) -> Number:
    return math.log(value) if base is None else math.log(value) / math.log(base)


_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "sqrt": _sqrt,
    "abs": abs,
    "round": _rounded,
    "min": min,
    "max": max,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "exp": lambda value: math.exp(value),
    "log": _log,
    "sin": lambda value: math.sin(value),
    "cos": lambda value: math.cos(value),
    "tan": lambda value: math.tan(value),
    "factorial": _factorial,
}


def _called(name: str, arguments: list[Number]) -> Number:
    if len(arguments) == 1 and name in ("min", "max"):
        return arguments[0]
    try:
        return _FUNCTIONS[name](*arguments)
    except TypeError:
        raise CalculatorError(f"{name} does not take {len(arguments)} arguments") from None


def _shown(value: Number) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    if value.denominator == 1:
        digits = str(value.numerator)
        return digits if len(digits) <= _MAX_DIGITS else f"{digits} (about {float_text(value)})"
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest == 1:  # it ends as a decimal
        scale = next((n for n in range(1, 16) if (value * 10**n).denominator == 1), 0)
        if scale:
            digits = f"{abs(value.numerator) * 10**scale // value.denominator:0{scale + 1}d}"
            return f"{'-' * (value < 0)}{digits[:-scale]}.{digits[-scale:]}"
    return float_text(value)


def float_text(value: Fraction) -> str:
    """Fifteen digits of a value, also where no float holds it."""
    try:
        return f"{float(value):.15g}"
    except OverflowError:
        digits = str(abs(value.numerator // value.denominator))
        return f"{'-' * (value < 0)}{digits[0]}.{digits[1:15]}e+{len(digits) - 1}"

"""What a final answer can be, as data: expressions, and the forms that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from learner_jax.runtime import WeirError


class MathError(WeirError, ValueError):
    """A text is no final answer in a form that is read here: says why."""


class AbsurdError(MathError):
    """It is too long, too deep, or its value too large, for a final answer."""


@dataclass(frozen=True)
class Number:
    """An exact rational number."""

    value: Fraction


@dataclass(frozen=True)
class Name:
    """A variable; "f(x)" is one too. The constants are pi, e, i and oo."""

    name: str


@dataclass(frozen=True)
class Apply:
    """An operation: add, multiply, divide, power, negate, plusminus, minusplus, sqrt, root, sin, factorial, ..."""

    function: str
    parts: tuple[Expression, ...]


Expression = Number | Name | Apply


@dataclass(frozen=True)
class Scalar:
    expression: Expression


@dataclass(frozen=True)
class Quantity:
    """A number with a unit; percent, degrees and currencies are units."""

    expression: Expression
    unit: str


@dataclass(frozen=True)
class Bracket:
    """Items between brackets, in order: a point, a vector, an interval. `left` and `right` are one of ( [ < ) ] >."""

    left: str
    items: tuple[Value, ...]
    right: str


@dataclass(frozen=True)
class Listing:
    """Several values, in no order; `braces` if they were written as a set."""

    items: tuple[Value, ...]
    braces: bool = False


@dataclass(frozen=True)
class Union:
    """Sets, joined."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Relation:
    """A chain such as 1 < x <= 2 or y = 2x: one more side than signs, which are among = < > <= >= !=."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """Parts between colons."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Based:
    """A numeral with its base: 1011_2. `digits` in upper case without leading zeros."""

    digits: str
    base: int


@dataclass(frozen=True)
class Choice:
    """The letter of one of several given answers."""

    letter: str


@dataclass(frozen=True)
class Text:
    """Words, in lower case with single spaces."""

    words: str


Value = Scalar | Quantity | Bracket | Listing | Union | Matrix | Relation | Ratio | Based | Choice | Text


def names_in(expression: Expression) -> frozenset[str]:
    """Variables of an expression."""
    match expression:
        case Name(name):
            return frozenset() if name in ("pi", "e", "i", "oo") else frozenset({name})
        case Apply(_, parts):
            return frozenset().union(*map(names_in, parts))
    return frozenset()


def nodes(expression: Expression) -> Iterator[Expression]:
    """The expression and all its parts."""
    yield expression
    if isinstance(expression, Apply):
        for part in expression.parts:
            yield from nodes(part)


def has_sign_choice(expression: Expression) -> bool:
    """Whether it stands for two values, by a plus-minus sign."""
    return any(isinstance(node, Apply) and node.function in ("plusminus", "minusplus") for node in nodes(expression))


def with_sign(expression: Expression, sign: int) -> Expression:
    """The upper (1) or lower (-1) value of an expression with plus-minus signs."""
    if not isinstance(expression, Apply):
        return expression
    parts = tuple(with_sign(part, sign) for part in expression.parts)
    if expression.function not in ("plusminus", "minusplus"):
        return Apply(expression.function, parts)
    is_plus = (sign > 0) == (expression.function == "plusminus")
    last = parts[-1] if is_plus else Apply("negate", parts[-1:])
    return last if len(parts) == 1 else Apply("add", (parts[0], last))

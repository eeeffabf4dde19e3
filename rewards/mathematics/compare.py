"""Whether an answer's value is the reference's, form by form.

The reference decides which other spellings count: a number may be given with a unit or as `x = ...`, solutions in any
order, an inequality for the interval that it describes. A form that is not named here is not equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from rewards.mathematics.numbers import equal, proportional, rational
from rewards.mathematics.units import conversion
from rewards.mathematics.values import (
    Apply,
    Based,
    Bracket,
    Choice,
    Expression,
    Listing,
    Matrix,
    Name,
    Number,
    Quantity,
    Ratio,
    Relation,
    Scalar,
    Text,
    Union,
    Value,
    names_in,
    nodes,
)

_INEQUALITIES = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_INFINITY = Scalar(Name("oo"))
_MINUS_INFINITY = Scalar(Apply("negate", (Name("oo"),)))


def same(reference: Value, answer: Value) -> bool:
    """Whether the answer is right.

    Raises:
      AbsurdError: a value is too large to be computed; no reference's is, so the answer is wrong.
    """
    match reference:
        case Scalar(expression):
            return _same_scalar(expression, answer)
        case Quantity(expression, unit):
            return _same_quantity(expression, unit, answer)
        case Bracket():
            return _same_bracket(reference, answer)
        case Listing():
            described = _as_set(reference)
            if isinstance(described, Union):
                return same(described, answer)
            return _same_listing(reference, answer)
        case Union(parts):
            found = _as_set(answer)
            return isinstance(found, Union) and _matched(parts, found.parts)
        case Matrix(rows):
            if not isinstance(answer, Matrix) or len(rows) != len(answer.rows):
                return False
            return all(_in_order(mine, theirs) for mine, theirs in zip(rows, answer.rows, strict=True))
        case Relation():
            return _same_relation(reference, answer)
        case Ratio(parts):
            return _same_ratio(parts, answer)
        case Based(digits, _):
            if isinstance(answer, Scalar):
                return isinstance(answer.expression, Number) and str(answer.expression.value) == digits
            return answer == reference
        case Choice() | Text():
            return answer == reference


def _same_scalar(expression: Expression, answer: Value) -> bool:
    match answer:
        case Scalar(other):
            return equal(expression, other)
        case Quantity(other, "%"):
            as_fraction = Apply("divide", (other, Number(Fraction(100))))
            size = rational(expression)
            # "What percentage ...?" with the reference 40 is answered by 40 %; a share such as 0.4 is not.
            is_percentage = size is not None and abs(size) > 1
            return equal(expression, as_fraction) or (is_percentage and equal(expression, other))
        case Quantity(other, "deg") if Name("pi") in nodes(expression):
            return equal(expression, _in_radians(other))
        case Quantity(other, unit):
            # A unit that the reference leaves to the question; of angles, a bare number is in degrees unless it has pi.
            is_degrees = unit == "rad" and Name("pi") not in nodes(expression)
            return not is_degrees and not names_in(expression) and equal(expression, other)
        case Relation(sides, signs) if set(signs) == {"="}:
            sides = _without_name(sides, names_in(expression))
            return bool(sides) and all(
                isinstance(side, Scalar) and equal(expression, side.expression) for side in sides
            )
    return False


def _in_radians(degrees: Expression) -> Expression:
    return Apply("multiply", (degrees, Apply("divide", (Name("pi"), Number(Fraction(180))))))


def _same_ratio(parts: tuple[Value, ...], answer: Value) -> bool:
    """Whether an answer has the parts, or a multiple of them if these are in lowest terms; 3:30 is rather a time."""
    if not isinstance(answer, Ratio):
        return False
    if _in_order(parts, answer.parts):
        return True
    match parts, answer.parts:
        case (
            (Scalar(Number(over)), Scalar(Number(under))),
            (Scalar(Number(top)), Scalar(Number(bottom))),
        ) if over.denominator == under.denominator == 1 == math.gcd(int(over), int(under)):
            return top != 0 and top * under == over * bottom
    return False


def _without_name(sides: tuple[Value, ...], but: frozenset[str]) -> tuple[Value, ...]:
    """The sides of an equation after the variable, or the f(x), that it is about."""
    match sides[0]:
        case Scalar(Name(name)) if name not in but and name not in ("pi", "e", "i", "oo"):
            return sides[1:]
        case Bracket("(", items, ")") if all(_is_variable(item) for item in items):
            return sides[1:]
    return sides


def _is_variable(value: Value) -> bool:
    return isinstance(value, Scalar) and isinstance(value.expression, Name) and bool(names_in(value.expression))


def _letters(expression: Expression) -> str:
    """A unit of one letter, which alone reads as a variable, with its power; "" for anything else."""
    match expression:
        case Name(name):
            return name
        case Apply("power", (Name(name), Number(value))) if value in (2, 3):
            return f"{name}^{value}"
    return ""


def _same_quantity(expression: Expression, unit: str, answer: Value) -> bool:
    match answer:
        case Quantity(other, "deg") if unit == "rad":
            return equal(expression, _in_radians(other))
        case Quantity(other, "rad") if unit == "deg":
            return equal(_in_radians(expression), other)
        case Quantity(other, theirs):
            factor = conversion(theirs, unit)
            return factor is not None and equal(expression, Apply("multiply", (other, Number(factor))))
        case Scalar(Apply("multiply", (other, Name(name)))) if conversion(name, unit) is not None:
            return _same_quantity(expression, unit, Quantity(other, name))
        case Scalar(Apply("divide", (Apply("multiply", (other, Name(over))), under))) if (
            unit == f"{over}/{_letters(under)}"
        ):
            return _same_quantity(expression, unit, Quantity(other, unit))
        case Scalar(other) if unit == "%":
            as_fraction = Apply("divide", (expression, Number(Fraction(100))))
            return equal(expression, other) or equal(as_fraction, other)
        case Scalar(other) if unit == "deg" and Name("pi") in nodes(other):
            return equal(_in_radians(expression), other)
        case Scalar(other):
            return not names_in(other) and equal(expression, other)
        case Relation(sides, signs) if (
            set(signs) == {"="} and len(sides) == 2 and _without_name(sides, frozenset()) != sides
        ):
            return _same_quantity(expression, unit, sides[1])
    return False


def _same_bracket(reference: Bracket, answer: Value) -> bool:
    if isinstance(answer, Relation) and (
        _is_interval(reference) or (len(reference.items) == 2 and len(answer.signs) == 2)
    ):
        answer = _as_set(answer)
    if isinstance(answer, Relation) and answer.signs == ("=",) and _without_name(answer.sides, frozenset()):
        answer = answer.sides[1]
    if not isinstance(answer, Bracket):
        return False
    return (reference.left, reference.right) == (answer.left, answer.right) and _in_order(reference.items, answer.items)


def _is_interval(bracket: Bracket) -> bool:
    """Whether a bracket can be nothing but an interval; (1, 2) may be a point, and [1, 2] a list."""
    infinite = any(item in (_INFINITY, _MINUS_INFINITY) for item in bracket.items)
    return len(bracket.items) == 2 and (infinite or (bracket.left == "(") != (bracket.right == ")"))


def _same_listing(reference: Listing, answer: Value) -> bool:
    mine = reference.items
    theirs = answer.items if isinstance(answer, Listing) else (answer,)
    if reference.braces:
        mine, theirs = _distinct(mine), _distinct(theirs)
    if not mine and isinstance(answer, Text):
        return answer.words in ("no solution", "no solutions", "empty set", "the empty set", "none")
    # Solutions of one variable may be named in the answer, or in the reference, but not differently.
    return _matched(mine, theirs) or _matched(mine, _named_values(theirs)) or _matched(_named_values(mine), theirs)


def _named_values(items: Sequence[Value]) -> tuple[Value, ...]:
    """`x = 1, x = 2` as 1, 2; the items themselves if they don't all name the same variable."""
    names: set[str] = set()
    values: list[Value] = []
    for item in items:
        match item:
            case Relation((Scalar(Name(name)), Listing(several, False)), ("=",)):
                names.add(name)
                values += several
            case Relation((Scalar(Name(name)), value), ("=",)):
                names.add(name)
                values.append(value)
            case _ if names:
                values.append(item)
            case _:
                return tuple(items)
    return tuple(values) if len(names) == 1 else tuple(items)


def _distinct(items: Sequence[Value]) -> tuple[Value, ...]:
    kept: list[Value] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return tuple(kept)


def _matched(mine: Sequence[Value], theirs: Sequence[Value]) -> bool:
    """Whether each of one is one of the other, one to one, in whatever order."""
    left = list(theirs)
    if len(mine) != len(left):
        return False
    for item in mine:
        place = next((index for index, other in enumerate(left) if same(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _in_order(mine: Sequence[Value], theirs: Sequence[Value]) -> bool:
    return len(mine) == len(theirs) and all(same(one, other) for one, other in zip(mine, theirs, strict=True))


def _same_relation(reference: Relation, answer: Value) -> bool:
    if set(reference.signs) == {"="} and not isinstance(answer, Relation):
        # `x = 5`, of which the answer gives the value.
        value = _without_name(reference.sides, frozenset())
        return len(value) < len(reference.sides) and all(same(side, answer) for side in value)
    mine, theirs = _as_set(reference), _as_set(answer)
    if not isinstance(mine, Relation) and not isinstance(answer, Relation):
        return same(mine, theirs)
    if not isinstance(answer, Relation):
        return False
    if not isinstance(mine, Relation) or not isinstance(theirs, Relation):
        return type(mine) is type(theirs) and _about(reference) == _about(answer) and same(mine, theirs)
    return len(reference.signs) == len(answer.signs) and (
        _same_chain(reference, answer) or _same_chain(reference, _turned(answer))
    )


def _same_chain(mine: Relation, theirs: Relation) -> bool:
    if len(mine.signs) > 1:
        return mine.signs == theirs.signs and _in_order(mine.sides, theirs.sides)
    if mine.signs != theirs.signs or not all(isinstance(side, Scalar) for side in (*mine.sides, *theirs.sides)):
        return mine.signs == theirs.signs and _in_order(mine.sides, theirs.sides)
    sign = proportional(_difference(mine), _difference(theirs))
    return sign == 1 or (sign == -1 and mine.signs[0] in ("=", "!="))


def _difference(relation: Relation) -> Expression:
    left, right = relation.sides
    assert isinstance(left, Scalar)
    assert isinstance(right, Scalar)
    return Apply("add", (left.expression, Apply("negate", (right.expression,))))


def _turned(relation: Relation) -> Relation:
    signs = tuple(_INEQUALITIES.get(sign, sign) for sign in reversed(relation.signs))
    return Relation(tuple(reversed(relation.sides)), signs)


def _about(relation: Relation) -> frozenset[str]:
    return frozenset().union(*(names_in(side.expression) for side in relation.sides if isinstance(side, Scalar)))


def _as_set(value: Value) -> Value:
    """The interval of an inequality in one variable that stands alone; everything else as it is."""
    if isinstance(value, Listing) and not value.braces and all(isinstance(item, Relation) for item in value.items):
        parts = tuple(map(_as_set, value.items))
        return Union(parts) if all(isinstance(part, Bracket) for part in parts) else value
    if not isinstance(value, Relation):
        return value
    if value.signs[0] in (">", ">="):
        value = _turned(value)
    match value:
        case Relation((Scalar(Name()), bound), ("<" | "<=" as sign,)) if _is_constant(bound):
            return Bracket("(", (_MINUS_INFINITY, bound), ")" if sign == "<" else "]")
        case Relation((bound, Scalar(Name())), ("<" | "<=" as sign,)) if _is_constant(bound):
            return Bracket("(" if sign == "<" else "[", (bound, _INFINITY), ")")
        case Relation((low, Scalar(Name()), high), ("<" | "<=" as first, "<" | "<=" as second)):
            if _is_constant(low) and _is_constant(high):
                return Bracket("(" if first == "<" else "[", (low, high), ")" if second == "<" else "]")
        case Relation((Scalar(Apply("abs", (Name(),))), Scalar(bound)), ("<" | "<=" as sign,)) if not names_in(bound):
            ends = (Scalar(Apply("negate", (bound,))), Scalar(bound))
            return Bracket("(" if sign == "<" else "[", ends, ")" if sign == "<" else "]")
        case Relation((Scalar(bound), Scalar(Apply("abs", (Name(),)))), ("<" | "<=" as sign,)) if not names_in(bound):
            left, right = Scalar(Apply("negate", (bound,))), Scalar(bound)
            return _outside(left, right, is_open=sign == "<")
        case Relation((Scalar(Name()), excluded), ("!=",)) if _is_constant(excluded):
            return _outside(excluded, excluded, is_open=True)
    return value


def _outside(low: Value, high: Value, *, is_open: bool) -> Union:
    below = Bracket("(", (_MINUS_INFINITY, low), ")" if is_open else "]")
    return Union((below, Bracket("(" if is_open else "[", (high, _INFINITY), ")")))


def _is_constant(value: Value) -> bool:
    return isinstance(value, Scalar) and not names_in(value.expression)

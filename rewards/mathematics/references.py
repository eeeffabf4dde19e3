"""Reference answers: read strictly, and proven when they are loaded to pass themselves and to fail near misses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from rewards.mathematics.compare import same
from rewards.mathematics.final_answer import MARK, bare, final_answer, last_line
from rewards.mathematics.numbers import has_value, rational
from rewards.mathematics.parser import parse
from rewards.mathematics.values import (
    AbsurdError,
    Apply,
    Based,
    Bracket,
    Choice,
    Expression,
    Listing,
    MathError,
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
    nodes,
)

_PLAIN = re.compile(r"-?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{1,15})?", re.ASCII)
_BEFORE_CHOICE = re.compile(r"(?:option|choice|answer)\s+(?=\(?[A-Z]\b)", re.I)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
#: "(C) 12" or "C. 12", as a model repeats the choice that it takes
_CHOSEN = re.compile(r"\(?([A-Za-z])\)[\s:.]*(?!.*\([A-Za-z]\)).*|([A-Z])[.:]\s.*", re.S)
_KINDS: dict[type, str] = {
    Quantity: "quantity",
    Bracket: "tuple or interval",
    Listing: "set or list",
    Union: "union",
    Matrix: "matrix",
    Relation: "equation or inequality",
    Ratio: "ratio",
    Based: "numeral with a base",
    Choice: "choice",
    Text: "text",
}
_ONE = Number(Fraction(1))


@dataclass(frozen=True)
class Reference:
    """A reference answer that was understood.

    Attributes:
      text: as it stands in the file, without math delimiters.
      kind: in words, for people.
    """

    text: str
    value: Value
    kind: str


@dataclass(frozen=True)
class Judgement:
    """Of one response.

    Attributes:
      found: the text taken for its final answer.
      understood: whether that is in a form that is read here; if not, it is wrong.
    """

    correct: bool
    found: str
    understood: bool


@lru_cache(maxsize=65_536)
def read_reference(text: str) -> Reference:
    """The reference answer.

    Raises:
      MathError: it is in no form that is read here, or can't be told from a wrong answer; says why.
    """
    if _PLAIN.fullmatch(text.strip()):
        return Reference(text.strip(), Scalar(Number(Fraction(text.strip().replace(",", "")))), "number")
    inner = bare(text)
    try:
        value = parse(inner)
        kind = _KINDS.get(type(value)) or ("number" if _is_number(value) else "expression")
        reference = Reference(inner, value, kind)
        _prove(reference)
    except RecursionError:
        raise AbsurdError("it is nested too deeply") from None
    return reference


def judge(reference: Reference, response: str) -> Judgement:
    """Whether a response gives the reference's value as its final answer. Whatever the response is, this returns.

    An answer that is not understood, or whose value is too large to be computed, is wrong: the reference was understood
    and computed within the same bounds, so a right answer can be written within them.
    """
    found = final_answer(response)
    if isinstance(reference.value, Choice):
        found = _BEFORE_CHOICE.sub("", _TEXT_COMMAND.sub(lambda match: match[1], found))
        line = last_line(response)
        if match := _CHOSEN.fullmatch(found) or (found in line and _CHOSEN.fullmatch(line)):
            found = match[1] or match[2]
    try:
        answer = parse(found)
    except (MathError, RecursionError):
        return Judgement(False, found, understood=False)
    try:
        return Judgement(same(reference.value, answer), found, understood=True)
    except (MathError, RecursionError):
        return Judgement(False, found, understood=True)


def _is_number(value: Value) -> bool:
    return isinstance(value, Scalar) and rational(value.expression) is not None


def _prove(reference: Reference) -> None:
    text = reference.text
    for expression in _expressions(reference.value):
        if not has_value(expression):
            raise MathError("it has no value, or a part of it has none")
    forms = [text, f"\\boxed{{{text}}}", f"{MARK} {text}"]
    if not isinstance(reference.value, Text | Choice) and not re.search(r"(?<!\\)\$", text):
        forms += [f"${text}$", f"The answer is ${text}$."]
    for form in forms:
        judgement = judge(reference, form)
        if not judgement.correct:
            said = f"{judgement.found!r} is {'another value' if judgement.understood else 'not understood'}"
            raise MathError(f"it doesn't equal itself when it is written as {form!r}: {said}")
    for miss in _near_misses(reference.value):
        if same(reference.value, miss):
            raise MathError(f"it can't be told from the wrong answer {miss}")


def _expressions(value: Value) -> Iterator[Expression]:
    match value:
        case Scalar(expression) | Quantity(expression, _):
            yield expression
        case Bracket(_, items, _) | Listing(items, _) | Union(items) | Relation(items, _) | Ratio(items):
            for item in items:
                yield from _expressions(item)
        case Matrix(rows):
            for row in rows:
                for item in row:
                    yield from _expressions(item)


def _near_misses(value: Value) -> Iterator[Value]:
    """Wrong answers that resemble a right one."""
    match value:
        case Scalar(expression):
            yield Scalar(_ONE if Name("oo") in nodes(expression) else Apply("add", (expression, _ONE)))
            if not _is_zero(expression):
                yield Scalar(Apply("negate", (expression,)))
            whole = rational(expression)
            for node in nodes(expression):
                if isinstance(node, Number) and node != expression and whole != node.value and _is_certain(expression):
                    yield Scalar(node)
        case Quantity(expression, unit):
            yield from (
                Quantity(miss.expression, unit) for miss in _near_misses(Scalar(expression)) if isinstance(miss, Scalar)
            )
        case Bracket(left, items, right):
            yield from items
            yield replace(value, left="[" if left == "(" else "(")
            yield replace(value, right="]" if right == ")" else ")")
            yield from (replace(value, items=changed) for changed in _near_sequences(items, ordered=True))
        case Listing(items, _):
            if len(items) > 1:
                yield from items
            yield from (replace(value, items=changed) for changed in _near_sequences(items, ordered=False))
        case Union(parts):
            yield from parts
            yield from (Union(changed) for changed in _near_sequences(parts, ordered=False))
        case Matrix(rows):
            yield from (Matrix((changed, *rows[1:])) for changed in _near_sequences(rows[0], ordered=True))
        case Relation(sides, signs):
            for sign in {"=", "<", ">", "<=", ">=", "!="} - {signs[0]}:
                yield Relation(sides, (sign, *signs[1:]))
            for miss in _near_misses(sides[-1]):
                yield Relation((*sides[:-1], miss), signs)
                break
        case Ratio(parts):
            yield from (Ratio(changed) for changed in _near_sequences(parts, ordered=True))
        case Based(digits, base):
            yield Based(digits + "0", base)
            yield Based(digits, base + 1)
        case Choice(letter):
            yield Choice("A" if letter != "A" else "B")
        case Text(words):
            yield Text(f"not {words}")
            yield Text(words[:-1])


def _near_sequences(items: tuple[Value, ...], *, ordered: bool) -> Iterator[tuple[Value, ...]]:
    for index, item in enumerate(items):
        if len(items) > 1:
            yield (*items[:index], *items[index + 1 :])
        for miss in _near_misses(item):
            if not any(same(other, miss) for other in items):
                yield (*items[:index], miss, *items[index + 1 :])
                break
    if ordered and len(items) > 1 and not same(items[0], items[-1]):
        yield tuple(reversed(items))


def _is_zero(expression: Expression) -> bool:
    return rational(expression) == 0


def _is_certain(expression: Expression) -> bool:
    """Whether a number inside can't be the value itself by the laws of arithmetic alone, as in 3 * 1."""
    return rational(expression) is None

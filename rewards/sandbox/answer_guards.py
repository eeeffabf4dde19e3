"""Which answers may reach scorers that run them as Python: those whose syntax tree holds numbers and arithmetic only.

Several scorers of reasoning-gym hand the answer to `eval` or to SymPy's `parse_expr`, which is `eval`. Behind a guard
no answer reaches them that names, calls or subscripts anything but what is listed here, or that is too large to be an
answer. A refused answer is no answer of the dataset's form, so it gets what the scorer gives to no answer at all.

Arithmetic is bounded by an upper bound of the digits that its value can have. Every problem of these datasets has a
solution far below the bounds, so an expression above them is a wrong answer, not an unlucky one.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Guard = Callable[[str, Mapping[str, Any]], bool]

_MAX_CHARACTERS = 4000
_MAX_NODES = 1000
_MAX_DEPTH = 60
_MAX_BITS = 4096.0
_MAX_EXPONENT = 512

_ARITHMETIC = re.compile(r"[0-9+\-*/(). \t]+", re.ASCII)
_FORMULA = re.compile(r"[0-9A-Za-z+\-*/()., \t]+", re.ASCII)
_FUNCTIONS = frozenset(
    {
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "asin",
        "acos",
        "atan",
        "acot",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "exp",
        "log",
        "ln",
        "sqrt",
        "cbrt",
        "Abs",
    }
)
_CONSTANTS = frozenset({"pi", "E"})
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


def is_arithmetic(answer: str, entry: Mapping[str, Any]) -> bool:
    """Numbers, + - * / ** and parentheses."""
    return _ARITHMETIC.fullmatch(answer) is not None and _is_bounded(answer, has_names=False)


def is_formula(answer: str, entry: Mapping[str, Any]) -> bool:
    """Arithmetic with one-letter variables and the elementary functions."""
    return _FORMULA.fullmatch(answer) is not None and _is_bounded(answer, has_names=True)


def is_literal_or_right(answer: str, entry: Mapping[str, Any]) -> bool:
    """A list, or lists in a list, of numbers and texts; or the very text of a right answer, which is not evaluated."""
    right = [entry.get("answer") or "", *(entry.get("metadata") or {}).get("valid_answers", ())]
    if answer in right or answer.strip() in (text.strip() for text in right if text):
        return True
    tree = _parsed(answer)
    return tree is not None and isinstance(tree, ast.List | ast.Tuple | ast.Constant) and _is_literal(tree, depth=3)


#: scorers that run the answer, found by the tests over every dataset of the library
GUARDS: Mapping[str, Guard] = {
    "binary_matrix": is_literal_or_right,
    "countdown": is_arithmetic,
    "intermediate_integration": is_formula,
    "n_queens": is_literal_or_right,
    "polynomial_multiplication": is_formula,
    "puzzle24": is_arithmetic,
    "simple_integration": is_formula,
    "spiral_matrix": is_literal_or_right,
    "string_insertion": is_literal_or_right,
}


def _parsed(text: str) -> ast.expr | None:
    if len(text) > _MAX_CHARACTERS or not text.isascii():
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if sum(1 for _ in ast.walk(tree)) <= _MAX_NODES * 5 else None


def _is_literal(node: ast.expr, depth: int) -> bool:
    if isinstance(node, ast.List | ast.Tuple):
        return depth > 0 and all(_is_literal(element, depth - 1) for element in node.elts)
    return isinstance(node, ast.Constant) and type(node.value) in (int, str)


def _is_bounded(text: str, *, has_names: bool) -> bool:
    # Nesting is bounded before Python's parser sees the text: its own limit differs between versions.
    if not _is_shallow(text) or (tree := _parsed(text)) is None:
        return False
    return _bits(tree, has_names=has_names, depth=_MAX_DEPTH) <= _MAX_BITS


def _is_shallow(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth > _MAX_DEPTH:
            return False
    return True


def _bits(node: ast.expr, *, has_names: bool, depth: int) -> float:
    """Upper bound of the bits of numerator and denominator of a value; infinite for what is not arithmetic."""
    match node:
        case _ if depth == 0:
            return math.inf
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bits_of_number(value)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _bits(operand, has_names=has_names, depth=depth - 1)
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            power = _largest(exponent)
            return max(1.0, power) * _bits(base, has_names=has_names, depth=depth - 1) if power else math.inf
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _OPERATORS):
            parts = (_bits(side, has_names=has_names, depth=depth - 1) for side in (left, right))
            return sum(parts) + 1
        case ast.Name(id=name) if has_names and (len(name) == 1 or name in _CONSTANTS):
            return 1.0
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if has_names and name in _FUNCTIONS:
            return 1 + _bits(argument, has_names=has_names, depth=depth - 1)
    return math.inf


def _bits_of_number(value: float) -> float:
    if isinstance(value, int):
        return float(max(1, value.bit_length()))
    return 53 + abs(math.log2(abs(value))) if value and math.isfinite(value) else math.inf if value else 1.0


def _largest(exponent: ast.expr) -> float:
    """Largest size of an exponent made of numbers; 0 for an exponent that is too large or is itself a power."""
    match exponent:
        case ast.Constant(value=int() | float() as value) if abs(value) <= _MAX_EXPONENT:
            return max(1.0, float(abs(value)))
        case ast.UnaryOp(operand=operand):
            return _largest(operand)
        case ast.BinOp(left=ast.Constant(value=int() as top), op=ast.Div(), right=ast.Constant(value=int() as bottom)):
            return max(1.0, abs(top / bottom)) if bottom and abs(top) <= _MAX_EXPONENT else 0.0
        case ast.Name(id=name) if len(name) == 1:
            return 1.0
    return 0.0

"""Where a module can be wrong by one small, realistic mistake: the mutations of its syntax tree.

Mutation testing as of DeMillo, Lipton and Sayward, "Hints on test data selection" (IEEE Computer 11(4), 1978). The
kinds are the mistakes that matter here: bounds, extremes, the order of effects, an effect, a check, an update or a mask
that is missing, and arguments that are swapped.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_EXTREMES = {"min": "max", "any": "all", "minimum": "maximum", "argmin": "argmax", "floor": "ceil"}
_EXTREMES |= {other: name for name, other in _EXTREMES.items()}
#: Functions that do the same with their first two arguments swapped, or that no one would call so.
_SYMMETRIC = set(_EXTREMES) | {
    "isinstance",
    "issubclass",
    "getattr",
    "hasattr",
    "setattr",
    "allclose",
    "array_equal",
    "gcd",
}
#: What is said to people is no effect that anything relies on.
_SAYINGS = {"print", "info", "warning", "debug", "note", "update_display"}
_MASKS = ("mask", "weights", "valid", "learned")


@dataclass(frozen=True)
class Mutation:
    """One mistake: the bytes [start, end) of a module's UTF-8 text are replaced by `now`.

    Attributes:
      path: the module, relative to the repository.
      line: counted from 1, where the replaced text begins.
      kind: one of KINDS.
      was, now: the code before and after.
    """

    path: str
    line: int
    kind: str
    start: int
    end: int
    was: str
    now: str

    def applied(self, source: bytes) -> bytes:
        """The module's text with the mistake in it.

        Raises:
          ValueError: the text is not the one that the mutation was found in.
        """
        if source[self.start : self.end].decode() != self.was:
            raise ValueError(f"{self.path}:{self.line} no longer reads {self.was!r}: find its mutations again")
        return source[: self.start] + self.now.encode() + source[self.end :]


#: The nodes whose text is replaced, first and last, and the new text.
Rewrite = tuple[ast.expr | ast.stmt, ast.expr | ast.stmt, str]


def mutations(path: str, source: bytes) -> list[Mutation]:
    """All mutations of a module, in the order of its text; none in what only types, documents or says something."""
    starts = [0]
    for text in source.split(b"\n"):
        starts.append(starts[-1] + len(text) + 1)

    def position(line: int | None, column: int | None) -> int:
        assert line is not None
        assert column is not None
        return starts[line - 1] + column

    found = set()
    for node in _running(ast.parse(source)):
        for kind, rewrites in KINDS.items():
            for first, last, now in rewrites(node):
                start, end = position(first.lineno, first.col_offset), position(last.end_lineno, last.end_col_offset)
                found.add(Mutation(path, first.lineno, kind, start, end, source[start:end].decode(), now))
    return sorted(found, key=lambda mutation: (mutation.start, mutation.end, mutation.kind, mutation.now))


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes of function bodies that decide what happens: no annotation, decorator, error message, docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in ("__repr__", "__str__"):
            yield node
            for statement in node.body:
                yield from _within(statement)


def _within(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Raise | ast.JoinedStr | ast.Assert):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name != "annotation":
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _within(child)


def _changed(node: ast.AST, **fields: object) -> str:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    # Brackets keep a part of an expression together; they break no statement, since only expressions are changed so.
    return f"({ast.unparse(other)})"


def _bounds(node: ast.AST) -> Iterator[Rewrite]:
    """Another comparison, and one more or less left out."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield node, node, _changed(node, ops=[_COMPARISONS[type(node.ops[0])]()])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and _is_one(node.right):
        yield node, node, f"({ast.unparse(node.left)})"


def _is_one(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == 1


def _extremes(node: ast.AST) -> Iterator[Rewrite]:
    """min for max, any for all."""
    if isinstance(node, ast.Call) and (other := _EXTREMES.get(_called(node))):
        name = node.func
        now = other if isinstance(name, ast.Name) else ast.unparse(name).rpartition(".")[0] + "." + other
        yield name, name, now


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _logic(node: ast.AST) -> Iterator[Rewrite]:
    """or for and; a negation left out."""
    if isinstance(node, ast.BoolOp):
        yield node, node, _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, node, f"({ast.unparse(node.operand)})"


def _effects(node: ast.AST) -> Iterator[Rewrite]:
    """A call that is made for its effect, left out."""
    for statement in _statements(node):
        if _is_effect(statement):
            yield statement, statement, "pass"


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    return itertools.chain.from_iterable(_blocks(node))


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, [])
        if isinstance(block, list):
            yield block


def _is_effect(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value.value if isinstance(statement.value, ast.Await) else statement.value
    return isinstance(value, ast.Call) and _called(value) not in _SAYINGS


def _order(node: ast.AST) -> Iterator[Rewrite]:
    """Two effects that follow each other, the other way round."""
    for block in _blocks(node):
        for one, other in itertools.pairwise(block):
            if _is_effect(one) and _is_effect(other):
                yield one, other, f"{ast.unparse(other)}; {ast.unparse(one)}"


def _resets(node: ast.AST) -> Iterator[Rewrite]:
    """State that is not brought up to date."""
    if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__"):
        return
    for statement in _statements(node):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AugAssign):
            targets = [statement.target]
        if targets and all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
            yield statement, statement, "pass"


def _checks(node: ast.AST) -> Iterator[Rewrite]:
    """A check whose failure raises or returns at once, left out."""
    if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[0], ast.Raise | ast.Return | ast.Continue):
        yield node.test, node.test, "False"


def _swaps(node: ast.AST) -> Iterator[Rewrite]:
    """The first two arguments of a call, the other way round."""
    if not isinstance(node, ast.Call) or len(node.args) < 2 or _called(node) in _SYMMETRIC:
        return
    one, other = node.args[:2]
    if isinstance(one, ast.Name | ast.Attribute) and isinstance(other, ast.Name | ast.Attribute):
        first, second = ast.unparse(one), ast.unparse(other)
        if first != second:
            yield one, other, f"{second}, {first}"


def _masks(node: ast.AST) -> Iterator[Rewrite]:
    """A mask or weight that is not multiplied with; an array taken whole where a condition chooses."""
    if _called(node) == "where" and isinstance(node, ast.Call) and len(node.args) == 3:
        for chosen in node.args[1:]:
            yield node, node, f"({ast.unparse(chosen)})"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for mask, rest in ((node.left, node.right), (node.right, node.left)):
            if _is_mask(mask):
                yield node, node, f"({ast.unparse(rest)})"


def _is_mask(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return any(word in name for word in _MASKS)


#: What can be wrong, and the function that finds where in a node.
KINDS: dict[str, Callable[[ast.AST], Iterator[Rewrite]]] = {
    "bound": _bounds,
    "extreme": _extremes,
    "logic": _logic,
    "missing effect": _effects,
    "order of effects": _order,
    "missing update": _resets,
    "missing check": _checks,
    "swapped arguments": _swaps,
    "missing mask": _masks,
}

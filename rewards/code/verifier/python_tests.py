"""Tests in Python, taken apart into cases: each assertion of the outermost level is one.

They come with the data, so they are parsed here and run in the sandbox, in a process that the answer can't reach.
"""

from __future__ import annotations

import ast
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from learner_jax.runtime import WeirError

#: what tests compare with, by the module it is from: not the answer's where another name of the answer is called within
_HELPERS = {
    **dict.fromkeys(("isclose", "fabs", "floor", "ceil", "isnan"), "math"),
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque"), "collections"),
}
#: filters of warnings are those of the whole process
_WARNINGS = threading.Lock()
_UNITTEST = "_weir_unittest"
_RUN_UNITTEST = f"""
def {_UNITTEST}(case, method):
    import unittest
    result = unittest.TestResult()
    unittest.TestSuite([case(method)]).run(result)
    for _, text in result.errors + result.failures:
        raise AssertionError(text.strip().splitlines()[-1])
    assert result.testsRun or result.skipped
"""


class TestsError(WeirError, ValueError):
    """The row's tests can't be read."""


@dataclass
class PythonTests:
    """Tests as the sandbox runs them.

    Attributes:
      prelude: imports, which the answer may use as well.
      classes: class definitions of the setup, which live beside the answer.
      cases: statements in order, each with its kind.
      names: that the tests use and don't define.
      modules, helpers: of these names, those that are the standard library's.
    """

    prelude: str = ""
    classes: str = ""
    cases: list[dict[str, Any]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    helpers: dict[str, str] = field(default_factory=dict)


def python_tests(sources: list[str], setup: str, entry_point: str) -> PythonTests:
    """Takes tests apart.

    Args:
      sources: of the tests, which run one after the other.
      setup: what comes before them: imports, classes, values.
      entry_point: the answer's function that `check(candidate)` is called with; "" if there is no such thing.

    Raises:
      TestsError: one is no Python, or there is no assertion in them.
    """
    trees = [_parsed(source, f"tests[{index}]") for index, source in enumerate(sources)]
    before = _parsed(setup, "the setup of the tests")
    imports = [node for node in before.body if isinstance(node, ast.Import | ast.ImportFrom)]
    classes = [node for node in before.body if isinstance(node, ast.ClassDef)]
    # What the setup imports is imported on both sides; its classes are the answer's side's.
    others = [node for node in before.body if node not in classes]
    found = PythonTests(prelude=_text(imports), classes=_text(classes))
    statements = [node for tree in trees for node in tree.body if not _is_main(node)]
    found.cases = [_support(node) for node in others]
    found.cases += [case for node in statements for case in _cases(node)]
    found.cases += _implied(statements, entry_point)
    if not any(case["kind"] != "support" for case in found.cases):
        raise TestsError("there is no assertion in the tests")
    tree = ast.Module([*others, *statements], [])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    found.names = used - _bound(tree) | ({entry_point.partition("(")[0]} if entry_point else set())
    found.modules = _modules(tree) & found.names
    found.helpers = _helpers(tree, found.names - found.modules)
    found.names -= found.modules | set(found.helpers)
    return found


def _parsed(source: str, what: str) -> ast.Module:
    text = source.replace("\r\n", "\n").replace("\r", "\n").strip("\ufeff")
    try:
        # An escape in a text that Python would rather have doubled is not ours to complain about.
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"{what} can't be parsed: {type(error).__name__}: {error}") from None


def _text(nodes: list[Any]) -> str:
    return ast.unparse(ast.Module(nodes, [])) if nodes else ""


def _is_main(node: ast.stmt) -> bool:
    """`if __name__ == "__main__": ...` and a bare `unittest.main()`: the cases are run here one by one."""
    if isinstance(node, ast.If):
        return "__name__" in ast.unparse(node.test)
    return isinstance(node, ast.Expr) and ast.unparse(node.value).startswith(("unittest.main(", "main("))


def _cases(node: ast.stmt) -> Iterator[dict[str, Any]]:
    match node:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            yield {"kind": "equal", "left": ast.unparse(left), "right": ast.unparse(right)}
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield _support(node)
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Delete() | ast.Pass():
            yield _support(node)
        case ast.Expr(value=ast.Constant()):
            return
        case _:
            is_case = any(isinstance(one, ast.Assert | ast.Call | ast.Raise) for one in ast.walk(node))
            yield {"kind": "statement" if is_case else "support", "source": ast.unparse(node)}


def _support(node: ast.stmt) -> dict[str, Any]:
    is_import = isinstance(node, ast.Import | ast.ImportFrom)
    return {"kind": "support", "source": ast.unparse(node), "is_import": is_import}


def _implied(statements: list[ast.stmt], entry_point: str) -> Iterator[dict[str, Any]]:
    """Calls that a test runner makes: of `check`, of functions named test, of methods of unittest's cases."""
    called = {
        node.func.id
        for statement in statements
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    for node in statements:
        if isinstance(node, ast.FunctionDef) and node.name not in called:
            if node.name == "check" and len(node.args.args) == 1 and entry_point:
                yield {"kind": "statement", "source": f"check({entry_point})"}
            elif node.name.startswith("test") and node.args.args:
                yield from _parametrized(node)
            elif node.name.startswith("test"):
                yield {"kind": "statement", "source": f"{node.name}()"}
        elif isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases):
            yield {"kind": "support", "source": _RUN_UNITTEST.strip()}
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name.startswith("test"):
                    yield {"kind": "statement", "source": f"{_UNITTEST}({node.name}, {method.name!r})"}


def _parametrized(node: ast.FunctionDef) -> Iterator[dict[str, Any]]:
    """A call for each set of values that one `pytest.mark.parametrize` lists."""
    match node.decorator_list:
        case [
            ast.Call(func=ast.Attribute(attr="parametrize"), args=[names, ast.List(elts=sets) | ast.Tuple(elts=sets)])
        ]:
            is_single = isinstance(names, ast.Constant) and "," not in str(names.value)
            for values in sets:
                given = ast.unparse(values) if is_single else f"*{ast.unparse(values)}"
                yield {"kind": "statement", "source": f"{node.name}({given})"}


def _bound(tree: ast.AST) -> set[str]:
    """Names that the tests define somewhere."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                bound |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
    return bound


def _modules(tree: ast.AST) -> set[str]:
    """Names that are used as modules of the standard library: the answer's own thing of that name is not meant."""
    return {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in sys.stdlib_module_names
    }


def _helpers(tree: ast.AST, names: set[str]) -> dict[str, str]:
    """Functions of the standard library that tests put around a call of the answer, by the module they are from."""
    around = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if any(
            isinstance(inner, ast.Name) and inner.id in names and inner.id != node.func.id
            for argument in (*node.args, *node.keywords)
            for inner in ast.walk(argument)
        )
    }
    return {name: _HELPERS[name] for name in around & names & set(_HELPERS)}

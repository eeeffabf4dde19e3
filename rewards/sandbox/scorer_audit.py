"""Looks through a scorer's source for calls that can run text as code, before a model's answer ever meets it.

The walk starts at a dataset's `score_answer` and follows every function, method and class of reasoning-gym that is
named on the way. It errs on the side of refusing: it doesn't ask what the text is that reaches such a call. Scorers
that evaluate only their own data are named here, and the tests watch them score hostile answers.

Not covered: calls hidden behind computed names, and other libraries that evaluate their arguments without one of the
names below. The tests therefore also watch, for every dataset, what reaches `eval`, `exec` and `compile`.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from typing import Any

from rewards.sandbox.answer_guards import GUARDS

_LIBRARY = "reasoning_gym"
#: functions that run, or may run, text as code, whatever object they are reached through
_RUNNERS = frozenset(
    {
        "eval",
        "exec",
        "__import__",
        "import_module",
        "parse_expr",
        "sympify",
        "parse_latex",
        "lambdify",
        "nsimplify",
        "system",
        "popen",
        "Popen",
        "check_output",
        "run_path",
        "run_module",
        "unsafe_load",
    }
)
#: calls of a module that do so, where the name alone says nothing
_RUNNERS_OF = frozenset(
    {("builtins", "compile"), ("pickle", "load"), ("pickle", "loads"), ("marshal", "loads"), ("yaml", "load")}
)
#: scorers whose source evaluates text, but only text that the dataset made itself
OWN_DATA_ONLY = frozenset({"bitwise_arithmetic", "number_sorting"})


def refusal(name: str, dataset: type) -> str:
    """Why answers must not reach the scorer of the dataset of that name; empty if they may, behind a guard if any."""
    if name in GUARDS or name in OWN_DATA_ONLY:
        return ""
    if not (runners := runners_of(dataset)):
        return ""
    return (
        f"its scorer may run the model's answer as code (it calls {', '.join(sorted(runners))}), and there is no guard "
        f"for it; choose another dataset"
    )


def runners_of(dataset: type) -> set[str]:
    """Names of the calls within reach of a dataset's scorer that can run text as code."""
    found: set[str] = set()
    seen: set[Any] = set()
    waiting: list[tuple[Any, type | None]] = [(dataset.score_answer, dataset)]  # type: ignore[attr-defined]
    while waiting:
        function, owner = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            found.add(f"{function!r}, whose source is not there")
            continue
        names = vars(sys.modules[function.__module__])
        for node in ast.walk(tree):
            found |= _runner(node, names)
            waiting += [(target, owner) for target in _targets(node, names, owner) if target not in seen]
    return found


def _runner(node: ast.AST, names: dict[str, Any]) -> set[str]:
    match node:
        case ast.Name(id=name):
            target = names.get(name)
            original = getattr(target, "__name__", name) if callable(target) else name
            module = getattr(target, "__module__", "builtins") or ""
        case ast.Attribute(value=value, attr=original):
            held = names.get(value.id) if isinstance(value, ast.Name) else None
            name, module = original, getattr(held, "__name__", "")
        case _:
            return set()
    is_own = module.startswith(_LIBRARY)
    runs = (name in _RUNNERS or original in _RUNNERS or (module, original) in _RUNNERS_OF) and not is_own
    return {original} if runs else set()


def _targets(node: ast.AST, names: dict[str, Any], owner: type | None) -> list[Any]:
    """Functions of the library that a node names: to be walked next."""
    match node:
        case ast.Name(id=name):
            target = names.get(name)
        case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
            target = inspect.getattr_static(owner, name, None) if owner else None
            target = getattr(target, "__func__", target)
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            target = getattr(names.get(module), name, None)
        case _:
            return []
    if not str(getattr(target, "__module__", "")).startswith(_LIBRARY):
        return []
    if inspect.isclass(target):
        # Methods that dataclasses generate have no source; they run nothing but assignments and comparisons.
        return [p for p in vars(target).values() if inspect.isfunction(p) and not _is_generated(p)]
    return [target] if inspect.isfunction(target) else []


def _is_generated(function: Any) -> bool:
    return bool(inspect.unwrap(function).__code__.co_filename == "<string>")

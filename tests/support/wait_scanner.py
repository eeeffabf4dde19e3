"""Finds waits without a bound in source code, by its syntax tree.

Not covered: locks taken by `with`, files and sockets read without a timeout, arbitrary awaits, and calls that block
under another name. Whether a bound that is given is a sensible one is for people to see.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

#: methods that wait for ever when they are called without an argument
_BLOCKING_METHODS = frozenset({"wait", "join", "result", "get", "acquire", "communicate"})
#: functions that wait for others unless they are given a timeout by name
_WAITING_FUNCTIONS = frozenset(
    {"wait", "gather", "as_completed", "run", "call", "check_call", "check_output", "urlopen"}
)
_MODULES_OF_THEM = frozenset({"asyncio", "subprocess", "futures", "concurrent", "request", "urllib", ""})
_PROCESS_FUNCTIONS = frozenset({"run", "call", "check_call", "check_output"})
_SLEEPS = frozenset({"time.sleep", "asyncio.sleep", "asyncio.wait", "select.select", "signal.pause"})
#: what a loop must do with a `Wait` to end in time, or to be seen to
_CONSULTS = frozenset({"check", "sleep", "pause", "bound"})
_BOUNDING_CONTEXTS = frozenset({"bound", "timeout", "timeout_at"})


@dataclass(frozen=True)
class Finding:
    """A wait that nothing bounds.

    Attributes:
      where: function that it is in, e.g. "Fleet.run".
      code: the call, or the head of the loop, as source.
    """

    line: int
    where: str
    code: str
    why: str


def scan(source: str) -> list[Finding]:
    """All waits without a bound in one module's source, in the order of lines."""
    tree = ast.parse(source)
    imported = {
        name.asname or name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    # A method of the module's own has a body that is scanned itself.
    own = {f"self.{node.name}()" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    found = (finding for finding in _scan(tree, "", False, imported) if finding.code not in own)
    return sorted(found, key=lambda finding: finding.line)


def _scan(
    node: ast.AST, where: str, bounded: bool, imported: set[str], *, in_coroutine: bool = False
) -> Iterator[Finding]:
    for child in ast.iter_child_nodes(node):
        inside, limited, coroutine = where, bounded, in_coroutine
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside, limited = f"{where}.{child.name}".strip("."), False
            coroutine = isinstance(child, ast.AsyncFunctionDef)
        if isinstance(child, ast.AsyncWith | ast.With):
            limited = limited or any(_bounds(item.context_expr) for item in child.items)
        if isinstance(child, ast.Call) and not bounded and (why := _unbounded_call(child, imported, in_coroutine)):
            yield Finding(child.lineno, where, ast.unparse(child), why)
        if isinstance(child, ast.While) and not bounded and _sleeps(child) and not _consults(child):
            yield Finding(
                child.lineno, where, f"while {ast.unparse(child.test)}", "a loop that sleeps consults no Wait"
            )
        yield from _scan(child, inside, limited, imported, in_coroutine=coroutine)


def _bounds(context: ast.expr) -> bool:
    return isinstance(context, ast.Call) and _name(context.func).rpartition(".")[2] in _BOUNDING_CONTEXTS


def _unbounded_call(call: ast.Call, imported: set[str], in_coroutine: bool) -> str:
    """Why a call may wait for ever, or empty."""
    module, _, name = _name(call.func).rpartition(".")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    timeout = keywords.get("timeout", keywords.get("timeout_s"))
    if isinstance(timeout, ast.Constant) and timeout.value is None:
        return f"{name} with timeout None"
    if timeout is not None or None in keywords:  # ** may hold one
        return ""
    owner = module.rpartition(".")[2]
    if name in _WAITING_FUNCTIONS and owner in _MODULES_OF_THEM and (owner or name in imported):
        takes_process = name in _PROCESS_FUNCTIONS
        if takes_process and owner != "subprocess" and name in ("run", "call"):
            return ""  # asyncio.run and the like: what they run has bounds of its own
        return f"{owner or 'imported'}.{name} without timeout"
    if name == "select" and owner == "select" and len(call.args) < 4:
        return "select without timeout"
    if name == "result" and in_coroutine:
        return ""  # of a task or a future of asyncio, which raises where a thread's would wait
    if isinstance(call.func, ast.Attribute) and name in _BLOCKING_METHODS and not call.args and not keywords:
        return f".{name}() without timeout"
    return ""


def _sleeps(loop: ast.While) -> bool:
    return any(
        isinstance(node, ast.Call) and (_name(node.func) in _SLEEPS or _is_event_wait(node)) for node in _own(loop)
    )


def _is_event_wait(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "wait" and bool(call.args or call.keywords)


def _consults(loop: ast.While) -> bool:
    """Whether the loop uses a `Wait`: one of its means on something that is called so, or what remains of it."""
    return any(
        isinstance(node, ast.Attribute)
        and (node.attr == "remaining_s" or (node.attr in _CONSULTS and "wait" in _name(node.value).lower()))
        for node in _own(loop)
    )


def _own(loop: ast.While) -> Iterator[ast.AST]:
    """What the loop itself does, without the functions that it defines."""
    queue: list[ast.AST] = [loop.test, *loop.body]
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue.extend(ast.iter_child_nodes(node))


def _name(node: ast.AST) -> str:
    """A dotted name as written, e.g. "asyncio.wait"; a part that is no name is "?"."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return "?"

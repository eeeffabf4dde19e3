"""References of MBPP pass, and mutations of them get the verdict that a plain run of code and tests gives."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rewards.code.sandbox import SandboxPool
from rewards.code.verifier import CodeVerifier

Row = dict[str, Any]
Mutation = Callable[[ast.Module], bool]

#: runs each program of a list in a process of its own, as a file of code and assertions, and prints which ended well
PLAIN = """
import json, os, signal, sys
for program in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        signal.alarm(60)
        try:
            exec(compile(program, "plain", "exec"), {"__name__": "plain"})
        except BaseException:
            os._exit(1)
        os._exit(0)
    sys.stdout.write("1" if os.waitpid(child, 0)[1] == 0 else "0")
    sys.stdout.flush()
"""


def wrong_constant(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
            return True
    return False


def off_by_one(tree: ast.Module) -> bool:
    other: dict[type, Any] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
            node.args[-1] = ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))
            return True
        if isinstance(node, ast.Compare) and type(node.ops[0]) in other:
            node.ops[0] = other[type(node.ops[0])]()
            return True
    return False


def swapped_branch(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp):
            node.test = ast.UnaryOp(ast.Not(), node.test)
            return True
    return False


def returned_none(tree: ast.Module) -> bool:
    returns = [node for node in ast.walk(tree) if isinstance(node, ast.Return)]
    for node in returns:
        node.value = ast.Constant(None)
    return bool(returns)


def raised_error(tree: ast.Module) -> bool:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in functions:
        node.body.insert(0, ast.parse("raise ValueError('mutated')").body[0])
    return bool(functions)


MUTATIONS: dict[str, Mutation] = {
    "wrong constant": wrong_constant,
    "off by one": off_by_one,
    "swapped branch": swapped_branch,
    "returned None": returned_none,
    "raised error": raised_error,
}


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[Row]:
    path = shared_data / "mbpp" / "mbpp.jsonl"
    if not path.exists():
        pytest.skip("MBPP is not among the shared data")
    return [json.loads(line) for line in path.read_text().splitlines()]


def mutated(rows: Iterable[Row], mutate: Mutation) -> list[Row]:
    """The rows that the mutation changes, with the changed code."""
    found = []
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(row["code"])
        if mutate(tree):
            found.append({**row, "code": ast.unparse(ast.fix_missing_locations(tree))})
    return found


def run_plainly(rows: list[Row]) -> list[bool]:
    programs = ["\n".join([row["code"], row["test_setup_code"], *row["test_list"]]) for row in rows]
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN],
        input=json.dumps(programs).encode(),
        capture_output=True,
        check=True,
        timeout=3600,
    )
    return [character == "1" for character in done.stdout.decode()]


def judged(pool: SandboxPool, rows: list[Row]) -> list[bool]:
    verifier = CodeVerifier(pool=pool, deadline_s=120.0)

    def passes(row: Row) -> bool:
        result = verifier.judge(f"My solution:\n```python\n{row['code']}\n```", row)
        assert result.score is not None, result
        return result.verdict == "pass"

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(passes, rows))


def test_references_pass(pool: SandboxPool, rows: list[Row]) -> None:
    assert all(judged(pool, rows[5::100]))


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_fail(pool: SandboxPool, rows: list[Row], name: str) -> None:
    chosen = mutated(rows[3::90], MUTATIONS[name])
    expected = run_plainly(chosen)
    assert expected.count(False) >= 2
    assert judged(pool, chosen) == expected


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nearly_all_references_pass(pool: SandboxPool, rows: list[Row]) -> None:
    verdicts = judged(pool, rows)
    failing = [row["task_id"] for row, passes in zip(rows, verdicts, strict=True) if not passes]
    assert len(failing) <= 1, failing


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", MUTATIONS)
def test_all_mutations_are_judged_as_a_plain_run_does(pool: SandboxPool, rows: list[Row], name: str) -> None:
    chosen = mutated(rows, MUTATIONS[name])
    assert len(chosen) > 300
    verdicts, expected = judged(pool, chosen), run_plainly(chosen)
    other = [row["task_id"] for row, one, two in zip(chosen, verdicts, expected, strict=True) if one != two]
    assert not other
    if name in ("returned None", "raised error"):
        assert verdicts.count(True) <= 2

"""From the columns of a row to what a sandbox is asked: the forms of tests that data sets have."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.code.verifier.python_tests import PythonTests, TestsError, python_tests

_MAX_CASES = 2000
_MAX_CHARACTERS = 16 << 20
_COLUMNS = ("tests", "test_list", "test", "input_output", "test_cases")
_SETUP_COLUMNS = ("test_imports", "test_setup_code", "setup")
_FUNCTION = ("fn", "fn_name", "function")
_ARGUMENTS = ("args", "arguments", "input")
_EXPECTED = ("expected", "output")
_STDIN = ("stdin", "input")
_STDOUT = ("stdout", "output", "expected_output")
_OUTPUT_ROOM = 4096
#: "f", or "Solution().f" as LeetCode's tasks name it
_ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(?:\(\)\.[A-Za-z_]\w*)?", re.ASCII)
_IMPORT = re.compile(r"^(?:import|from) [^\n]+$", re.MULTILINE)
#: What judges of LeetCode's tasks import for their answers
_TYPING = "from typing import Any, Dict, List, Optional, Set, Tuple, Union"


def request_of(row: Mapping[str, Any], code: str, *, output_bytes: int) -> dict[str, Any]:
    """What a sandbox is asked about an answer's code.

    Args:
      row: its tests stand in `tests` (or test_list, test, input_output, test_cases): Python as one text or several,
        function calls `{"fn", "args", "kwargs", "expected"}`, programs `{"stdin", "stdout"}`, or columns
        `{"inputs", "outputs", "fn_name"}`. `test_setup_code` and `test_imports` come before, `entry_point` names the
        function that `check(candidate)` gets. A `prompt` that is code, as HumanEval's, gives its imports, and its
        head of the function where the answer is a body only.
      output_bytes: that a program may print, unless more is expected of it.

    Raises:
      TestsError: the row has no tests, or they can't be read.
    """
    items = _items(row)
    sources = [item for item in items if isinstance(item, str)]
    function = _function_of(row)
    data = [_data_case(item, output_bytes, function) for item in items if isinstance(item, Mapping)]
    entry_point = row.get("entry_point")
    entry_point = entry_point if isinstance(entry_point, str) and _ENTRY_POINT.fullmatch(entry_point) else ""
    prompt = row.get("prompt")
    head = prompt if isinstance(prompt, str) and f"def {entry_point}(" in prompt else ""
    setup = "\n".join(text for column in _SETUP_COLUMNS for text in _texts(row.get(column)))
    setup = "\n".join([*_IMPORT.findall(head), setup])
    if any(case["kind"] == "call" for case in data):
        setup = f"{_TYPING}\n{setup}"
    found = python_tests(sources, setup, entry_point) if sources else PythonTests(prelude=setup)
    found.names |= {case["fn"].partition(".")[0].removesuffix("()") for case in data if case["kind"] == "call"}
    if any("." not in case["fn"] for case in data if case["kind"] == "call"):
        found.names.add("Solution")  # a method of it, where the answer has no such function
    cases = found.cases + data
    if len(cases) > _MAX_CASES:
        raise TestsError(f"there are {len(cases)} cases in the row's tests, at most {_MAX_CASES} are run")
    return {
        "code": _whole(code, head, entry_point),
        "prelude": found.prelude,
        "classes": found.classes,
        "names": sorted(found.names),
        "modules": sorted(found.modules),
        "helpers": found.helpers,
        "cases": cases,
    }


def _whole(code: str, head: str, entry_point: str) -> str:
    """The code, behind the head of its function if it is a body only."""
    made = rf"^\s*(?:async )?def {entry_point}\b|^{entry_point}\s*[:=]|^(?:from|import) .*\b{entry_point}\b"
    if not head or not code.strip() or re.search(made, code, re.MULTILINE):
        return code
    body = code if code.lstrip("\n")[:1] in " \t" else textwrap.indent(code, "    ")
    return f"{head.rstrip()}\n{body}"


def _function_of(row: Mapping[str, Any]) -> str:
    """The function that cases of LiveCodeBench call, which stands in the metadata of the row."""
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        metadata = _decoded(metadata)
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return name if isinstance(name, str) else ""


def text_of(case: Mapping[str, Any]) -> str:
    """What a case checks, for people."""
    match case["kind"]:
        case "equal":
            return f"{case['left']} == {case['right']}"
        case "call":
            given = [repr(argument) for argument in case["args"]]
            given += [f"{name}={argument!r}" for name, argument in case["kwargs"].items()]
            return f"{case['fn']}({', '.join(given)})"
        case "program":
            return f"stdin {case['stdin'][:40]!r}"
    return str(case["source"])


def _items(row: Mapping[str, Any]) -> list[Any]:
    """The row's tests, one by one."""
    column = next((name for name in _COLUMNS if row.get(name)), None)
    if column is None:
        raise TestsError(f"the row has no tests: expected one of the columns {', '.join(_COLUMNS)}")
    value = row[column]
    if isinstance(value, str):
        if len(value) > _MAX_CHARACTERS:
            raise TestsError(f"the row's tests have {len(value)} characters, allowed are {_MAX_CHARACTERS}")
        value = _decoded(value)
    if isinstance(value, Mapping):
        value = _from_columns(value) if "inputs" in value or "outputs" in value else [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = [value]
    if not all(isinstance(item, str | Mapping) for item in value):
        raise TestsError(f"{column} holds {type(value[0]).__name__}, expected texts of Python, or dicts")
    return list(value)


def _decoded(text: str) -> Any:
    """JSON of cases, or the text itself."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(v, str | dict) for v in value)):
            return value
    return text


def _from_columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    inputs, outputs, function = value.get("inputs"), value.get("outputs"), value.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise TestsError("inputs and outputs of the row's tests are no lists of one length")
    if not function:
        return [{"stdin": _joined(one), "stdout": _joined(other)} for one, other in zip(inputs, outputs, strict=True)]
    return [{"fn": function, "args": one, "expected": other} for one, other in zip(inputs, outputs, strict=True)]


def _joined(value: Any) -> Any:
    """Lines of a program's input or output as one text."""
    return "\n".join(map(str, value)) if isinstance(value, list) else value


def _data_case(item: Mapping[str, Any], output_bytes: int, function_of_row: str) -> dict[str, Any]:
    function = _first(item, _FUNCTION) or (function_of_row if item.get("testtype") == "functional" else None)
    if item.get("testtype") == "functional" and isinstance(item.get("input"), str) and function:
        arguments = [json.loads(line) for line in item["input"].splitlines() if line.strip()]
        item = {"fn": function, "args": arguments, "expected": json.loads(str(item.get("output")))}
    if function is not None:
        return _call(item, function)
    stdin, stdout = _first(item, _STDIN), _first(item, _STDOUT)
    if not isinstance(stdout, str) or not isinstance(stdin, str | None):
        raise TestsError(
            f'a case has {", ".join(map(str, item)) or "nothing"}: expected {{"fn", "args", "expected"}} or '
            f'{{"stdin", "stdout"}} with texts'
        )
    limit = max(output_bytes, 2 * len(stdout.encode("utf-8", "surrogateescape")) + _OUTPUT_ROOM)
    return {"kind": "program", "stdin": stdin or "", "stdout": stdout, "limit": limit}


def _call(item: Mapping[str, Any], function: Any) -> dict[str, Any]:
    arguments, named = _first(item, _ARGUMENTS), item.get("kwargs") or {}
    expected = [item[key] for key in _EXPECTED if key in item]
    if not isinstance(function, str) or not all(part.isidentifier() for part in function.replace("()", "").split(".")):
        raise TestsError(f"a case calls {str(function)[:40]!r}, expected a function's name")
    if not isinstance(arguments, list | tuple | None) or not isinstance(named, Mapping) or not expected:
        raise TestsError(f"the case of {function!r} needs a list of args and what is expected")
    return {
        "kind": "call",
        "fn": function,
        "args": list(arguments or ()),
        "kwargs": dict(named),
        "expected": expected[0],
    }


def _first(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((item[name] for name in names if name in item), None)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list | tuple) else []

"""Answers to rows of every form, judged in real sandboxes."""
# ruff: noqa: E501  (each line of the tables is one case)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rewards.code.sandbox import SandboxPool
from rewards.code.verifier import CodeVerifier
from rewards.contracts import RewardResult

SQUARE = "def f(x):\n    return x * x\n"


@pytest.fixture
def verifier(pool: SandboxPool) -> CodeVerifier:
    return CodeVerifier(pool=pool, deadline_s=30.0)


def judged(verifier: CodeVerifier, code: str, row: Mapping[str, Any]) -> RewardResult:
    return verifier.judge(f"```python\n{code}\n```", row)


STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
    def __contains__(self, item): return item in self.items
    def __iter__(self): return iter(self.items)
"""
NODE = "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"

RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "one text": (SQUARE, {"tests": "assert f(2) == 4\nassert f(-3) == 9"}),
    "a list of texts": (SQUARE, {"tests": ["assert f(2) == 4", "assert f(-3) == 9"]}),
    "MBPP": (SQUARE, {"test_list": ["assert f(2) == 4"], "test_setup_code": "", "test_imports": []}),
    "HumanEval": (
        SQUARE,
        {"test": "def check(candidate):\n    for x in range(5):\n        assert candidate(x) == x ** 2", "entry_point": "f"},
    ),
    "functions of tests": (SQUARE, {"tests": "def test_a():\n    assert f(2) == 4\ndef test_b():\n    assert f(0) == 0"}),
    "unittest": (
        SQUARE,
        {
            "tests": "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 4)\n"
            "if __name__ == '__main__':\n    unittest.main()"
        },
    ),
    "an import of the answer": (SQUARE, {"tests": "from solution import f as g\nassert g(3) == 9"}),
    "calls": (SQUARE, {"tests": [{"fn": "f", "args": [2], "expected": 4}, {"fn": "f", "args": [1.5], "expected": 2.25}]}),
    "a method": (
        "class Solution:\n    def twoSum(self, a, b=1): return [a, b]",
        {"tests": [{"fn": "Solution().twoSum", "args": [1], "kwargs": {"b": 2}, "expected": [1, 2]}]},
    ),
    "a method in a column": (
        "class Solution:\n    def pair(self, a: List[int], b): return a + [b]",
        {"tests": {"fn_name": "pair", "inputs": [[[1], 2]], "outputs": [[1, 2]]}},
    ),
    "LiveCodeBench, a function": (
        "class Solution:\n    def pair(self, a, b): return a + [b]",
        {"tests": '[{"input": "[1]\\n2", "output": "[1, 2]", "testtype": "functional"}]', "metadata": '{"func_name": "pair"}'},
    ),
    "check of a method": (
        "class Solution:\n    def pair(self, a, b): return [a, b]",
        {"tests": "def check(candidate):\n    assert candidate(a=1, b=2) == [1, 2]", "entry_point": "Solution().pair"},
    ),
    "HumanEval, imports of the prompt": (
        "def f(x: List[int]) -> int:\n    return sum(x)",
        {
            "prompt": "from typing import List\n\ndef f(x: List[int]) -> int:\n    ...\n",
            "test": "def check(candidate):\n    assert candidate([1, 2]) == 3",
            "entry_point": "f",
        },
    ),
    "HumanEval, a body only": (
        "    total = 0\n    return total + sum(x)",
        {
            "prompt": "def f(x):\n    ' Sums. '\n",
            "test": "def check(candidate):\n    assert candidate([1, 2]) == 3",
            "entry_point": "f",
        },
    ),
    "HumanEval, a function without def": (
        "f = lambda x: sum(x)",
        {
            "prompt": "def f(x):\n    ' Sums. '\n",
            "test": "def check(candidate):\n    assert candidate([1, 2]) == 3",
            "entry_point": "f",
        },
    ),
    "a parametrized test": (
        SQUARE,
        {"tests": "import pytest\n@pytest.mark.parametrize('a, b', [(1, 1), (3, 9)])\ndef test_f(a, b):\n    assert f(a) == b"},
    ),
    "a program": ("print(int(input()) + 1)", {"tests": [{"stdin": "1\n", "stdout": "2"}, {"stdin": "41", "stdout": "42\n"}]}),
    "columns of programs": (
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        {"input_output": '{"inputs": ["1 2\\n", "3"], "outputs": ["3\\n", "3\\n"]}'},
    ),
    "columns of calls": (SQUARE, {"tests": {"fn_name": "f", "inputs": [[2], [3]], "outputs": [4, 9]}}),
    "a main guard": (SQUARE + "if __name__ == '__main__':\n    print(f(int(input())))", {"tests": ["assert f(2) == 4"]}),
    "a program with a main guard": (
        "def main():\n    print(input()[::-1])\nif __name__ == '__main__':\n    main()",
        {"tests": [{"stdin": "abc", "stdout": "cba"}]},
    ),
    "a program that exits": ("import sys\nprint(1)\nsys.exit()", {"tests": [{"stdin": "", "stdout": "1"}]}),
    "an argument that is changed": (
        "def f(a): a.sort()",
        {"tests": "a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]"},
    ),
    "an argument that is returned": ("def f(a):\n    a.append(1)\n    return a", {"tests": "a = []\nassert f(a) is a and a == [1]"}),
    "an exception": (
        "class Odd(ValueError): pass\ndef f(x):\n    if x % 2: raise Odd(x)\n    return x",
        {"tests": "try:\n    f(3)\n    raise AssertionError('nothing raised')\nexcept Odd as error:\n    assert error.args == (3,)\n"
         "try:\n    f(3)\n    assert False\nexcept ValueError:\n    pass\nassert f(2) == 2"},
    ),
    "a generator": ("def f(n):\n    for i in range(n): yield i", {"tests": "assert list(f(3000)) == list(range(3000))"}),
    "an endless generator": (
        "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        {"tests": "g = f()\nassert [next(g) for _ in range(5)] == [0, 1, 2, 3, 4]"},
    ),
    "a function that is given": ("def f(g, a): return [g(x) for x in a]", {"tests": "assert f(lambda x: x + 1, [1, 2]) == [2, 3]"}),
    "a function that is returned": ("def f(a):\n    return lambda b: a + b", {"tests": "assert f(1)(2) == 3"}),
    "a class": (
        STACK,
        {
            "tests": "s = Stack()\ns.push(1)\ns.push(2)\nassert len(s) == 2\nassert s.pop() == 2\nassert 1 in s\nassert list(s) == [1]\n"
            "t = Stack()\nt.push(1)\nassert s == t\nassert isinstance(s, Stack)\nassert s.items == [1]"
        },
    ),
    "a class of the setup": (
        "def f(node):\n    return node.v if node.next is None else f(node.next)",
        {"test_setup_code": NODE, "tests": "assert f(Node(1, Node(2))) == 2"},
    ),
    "objects of the answer in the setup": (
        NODE + "def f(node): return node.v",
        {"test_setup_code": "root = Node(7)\nroot.next = Node(8)", "tests": ["assert f(root) == 7", "assert f(root.next) == 8"]},
    ),
    "a name of Python's own": ("def sum(a, b): return a + b", {"tests": ["assert sum(10, 15) == 25"]}),
    "imports of the setup": ("def f(x): return math.sqrt(x)", {"test_setup_code": "import math", "tests": "assert f(4) == 2"}),
    "an import of all": (SQUARE, {"tests": "from solution import *\nassert f(3) == 9"}),
    "pytest": (
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x / 3",
        {"tests": "import pytest\ndef test_a():\n    with pytest.raises(ValueError, match='neg') as caught:\n        f(-1)\n    assert str(caught.value) == 'negative'\n"
         "def test_b():\n    assert f(1) == pytest.approx(0.3333333)\n    assert [f(1)] != pytest.approx([0.4])"},
    ),
    "an escape that should be doubled": ("def f(x): return x", {"tests": "assert f('\\w') == '\\\\w'"}),
    "a set": ("def f(a): return set(a)", {"tests": "assert f([1, 1]) == {1}"}),
    "a named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        {"tests": "assert f() == (1, 2)"},
    ),
    "what is printed": (
        "def f(): print('hello')",
        {"tests": "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    f()\nassert out.getvalue() == 'hello\\n'"},
    ),
    "a value of the answer": ("count = 0\ndef f():\n    global count\n    count += 1", {"tests": "f()\nf()\nassert count == 2"}),
    "close numbers": ("def f(): return 0.1 + 0.2", {"tests": "import math\nassert math.isclose(f(), 0.3)\nassert abs(f() - 0.3) < 1e-9"}),
    "threads": (
        "import threading\ndef f():\n    a = []\n    t = threading.Thread(target=a.append, args=(1,))\n    t.start()\n    t.join()\n    return a",
        {"tests": "assert f() == [1]"},
    ),
    "files": ("def f():\n    open('a', 'w').write('b')\n    return open('a').read()", {"tests": "assert f() == 'b'"}),
    "a long text": ("print('ab' * 100_000)", {"tests": [{"stdin": "", "stdout": "ab" * 100_000}]}),
    "lone surrogates": ("def f(x): return x", {"tests": ["assert f('\\ud800') == '\\ud800'"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(verifier: CodeVerifier, name: str) -> None:
    code, row = RIGHT[name]
    result = judged(verifier, code, row)
    assert (result.verdict, result.score, result.reasons) == ("pass", 1.0, ())


#: answers whose objects or functions would agree with whatever they are compared to: code, tests
LIARS: dict[str, tuple[str, str]] = {
    "arithmetic": (
        "class A:\n    def __sub__(self, o): return 0\n    __rsub__ = __sub__\n    def __abs__(self): return 0\n"
        "    def __lt__(self, o): return True\n    __gt__ = __le__ = __ge__ = __lt__\ndef f(x): return A()",
        "assert abs(f(1) - 2.5) < 1e-6",
    ),
    "comparison": ("class A:\n    def __ge__(self, o): return True\ndef f(x): return A()", "assert f(1) >= 3"),
    "a class named as the function": (
        "class f:\n    def __init__(self, x): pass\n    def __contains__(self, o): return True\n    def __eq__(self, o): return True\n"
        "    def __sub__(self, o): return 0",
        "assert 2 in f(1)",
    ),
    "a container": ("class A:\n    def __contains__(self, o): return True\ndef f(x): return A()", "assert 2 in f(1)"),
    "a list's element": ("class A:\n    def __eq__(self, o): return True\ndef f(x): return A()", "assert f(1) in [1, 2, 3]"),
    "a method of texts": ("class A:\n    def startswith(self, o): return True\ndef f(x): return A()", "assert f(1).startswith('ab')"),
    "a method of sets": (
        "class A:\n    def symmetric_difference(self, o): return set()\n    issubset = lambda s, o: True\ndef f(x): return A()",
        "assert f(1).issubset({1, 2})",
    ),
    "a rounding": ("class A:\n    def __round__(self, n=0): return self\n    def __eq__(self, o): return True\ndef f(x): return A()",
                   "assert round(f(1), 2) == 3.14"),
    "sorted": ("def sorted(x): return [1, 2, 3]\ndef f(x): return [9]", "assert sorted(f([2, 1, 3])) == [1, 2, 3]"),
    "abs": ("def abs(x): return 0\ndef f(x): return 7", "assert abs(f(1) - 2) < 1"),
    "isinstance": ("def isinstance(a, b): return True\ndef f(x): return 'a'", "assert isinstance(f(1), int)"),
    "all": ("def all(x): return True\ndef f(x): return [1, 0]", "assert all(f(1))"),
    "a module": ("class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 7", "assert math.isclose(f(1), 2)"),
    "an import of all": ("def abs(x): return 0\ndef f(x): return 7", "from solution import *\nassert abs(f(1) - 2) < 1"),
    "an import of all with a module": (
        "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 7",
        "from solution import *\nassert math.isclose(f(1), 2)",
    ),
    "pytest's approx": ("class A:\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0\ndef f(x): return A()", "import pytest\nassert f(1) == pytest.approx(2)"),
    "pytest's raises": ("def f(x): raise KeyError(x)", "import pytest\nwith pytest.raises(ValueError):\n    f(1)"),
    "nothing raised": ("def f(x): return x", "import pytest\nwith pytest.raises(ValueError):\n    f(1)"),
    "a module that is missing": ("def f(x):\n    import numpy\n    return 1", "x = f(1)\nassert x == 1"),
    "a patched module": ("import math\nmath.isclose = lambda a, b: True\ndef f(x): return 7", "assert math.isclose(f(1), 2)"),
    "an imported helper": ("def isclose(a, b): return True\ndef f(x): return 7", "import math\nassert isclose(f(1), 2)"),
    "Counter": ("class Counter:\n    def __init__(s, x): pass\n    def __eq__(s, o): return True\ndef f(x): return [1]",
                "assert Counter(f(1)) == Counter([2])"),
    "numbers that are texts": ("class A(str):\n    def __eq__(self, o): return True\ndef f(x): return A('')", "assert f(1) == 'a'"),
    "a key": ("class A:\n    def __eq__(s, o): return True\n    def __hash__(s): return hash('a')\ndef f(x): return {A(): 1}",
              "assert f(1)['a'] == 1"),
    "a type": ("def f(x): return 'a'\nf.__annotations__ = {}", "assert type(f(1)) is int"),
    "the wrong exception": ("def f(x): raise AssertionError", "try:\n    f(1)\nexcept ValueError:\n    pass"),
    "an exception that is all": (
        "class E(ValueError, KeyError): pass\ndef f(x): raise E",
        "try:\n    f(1)\nexcept KeyError as error:\n    assert error.args == ('a',)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIARS)
def test_objects_that_agree_with_everything_pass_nothing(verifier: CodeVerifier, name: str) -> None:
    code, tests = LIARS[name]
    result = judged(verifier, code, {"tests": tests})
    assert (result.verdict, result.score) == ("fail", 0.0)


@pytest.mark.parametrize(
    ("code", "tests", "score", "reason"),
    [
        ("def f(x): return 4", ["assert f(2) == 4", "assert f(3) == 9"], 0.5, "test 2: f(3) == 9: got 4, expected 9"),
        ("def g(x): return 4", ["assert f(2) == 4"], 0.0, "test 1: f(2) == 4: error: NameError: name 'f' is not defined"),
        ("def f(x): return 1 / 0", ["assert f(2) == 4"], 0.0, "test 1: f(2) == 4: error: ZeroDivisionError: division by zero"),
        (
            "def f(x:",
            ["assert f(2) == 4"],
            0.0,
            "test 1: f(2) == 4: error: loading the answer: SyntaxError: '(' was never closed (<answer>, line 1)",
        ),
        ("raise KeyError('a')", ["assert f(2) == 4"], 0.0, "test 1: f(2) == 4: error: loading the answer: KeyError: 'a'"),
        (
            "def f(x):\n    if x == 2: import os; os._exit(0)\n    return x * x",
            ["assert f(2) == 4", "assert f(3) == 9"],
            0.5,
            "test 1: f(2) == 4: error: the process exited with status 0",
        ),
        ("def f(x): raise ValueError('\\x1b[31m\\n')", ["assert f(2) == 4"], 0.0, "test 1: f(2) == 4: error: ValueError: ?[31m?"),
        (
            "print(int(input()) // 0)",
            [{"stdin": "1", "stdout": "2"}],
            0.0,
            "test 1: stdin '1': error: ZeroDivisionError: integer division or modulo by zero",
        ),
        ("print(3)", [{"stdin": "1", "stdout": "2"}], 0.0, "test 1: stdin '1': line 1 is '3', expected '2'"),
        ("def f(x): return x", [{"fn": "f", "args": [1], "expected": 2}], 0.0, "test 1: f(1): got 1, expected 2"),
        ("f = 1\ng = 2", "x = f(1)\nassert x == 1", 0.0, "the tests' own lines: x = f(1): error: TypeError: 'int' object is not callable"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_told_why(verifier: CodeVerifier, code: str, tests: Any, score: float, reason: str) -> None:
    result = judged(verifier, code, {"tests": tests})
    assert (result.verdict, result.score, result.reasons[0]) == ("fail", score, reason)


def test_a_case_that_hangs_leaves_time_for_others(pool: SandboxPool) -> None:
    verifier = CodeVerifier(pool=pool, deadline_s=6.0)
    code = "def f(x):\n    while x == 2: pass\n    return x"
    result = judged(verifier, code, {"tests": ["assert f(2) == 4", "assert f(3) == 3"]})
    assert (result.score, result.parts) == (0.5, {"passed": 1.0, "cases": 2.0})
    assert result.reasons[0].startswith("test 1: f(2) == 4: timeout: no result within")


def test_without_partial_credit_all_tests_count(pool: SandboxPool) -> None:
    verifier = CodeVerifier(pool=pool, partial=False)
    result = judged(verifier, "def f(x): return 4", {"tests": ["assert f(2) == 4", "assert f(3) == 9"]})
    assert (result.score, result.verdict, result.parts["passed"]) == (0.0, "fail", 1.0)


def test_an_answer_without_code_fails(verifier: CodeVerifier) -> None:
    result = verifier.judge("```text\nI can't do that.\n```", {"tests": ["assert f(2) == 4"]})
    assert (result.score, result.verdict, result.reasons) == (0.0, "fail", ("there is no Python code in the answer",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "the row has no tests: expected one of the columns tests,"),
        ({"tests": []}, "the row has no tests"),
        ({"tests": "x = 1"}, "there is no assertion in the tests"),
        ({"tests": "assert f(1 =="}, "tests[0] can't be parsed: SyntaxError"),
        (
            {"tests": "import numpy as np\nassert f(1) == 1"},
            "the tests' own lines: import numpy as np: the tests need a package",
        ),
        ({"tests": [1, 2]}, "tests holds int, expected texts of Python, or dicts"),
        ({"tests": [{"stdin": "1"}]}, "a case has stdin: expected"),
        ({"tests": [{"fn": "f; import os", "args": [], "expected": 1}]}, "a case calls 'f; import os'"),
        ({"tests": [{"fn": "f", "args": [1]}]}, "the case of 'f' needs a list of args and what is expected"),
        ({"tests": {"inputs": [1], "outputs": []}}, "inputs and outputs of the row's tests are no lists of one length"),
        ({"tests": ["assert f(1) == 1"] * 3000}, "there are 3000 cases in the row's tests"),
        (
            {"tests": "class A: pass\nassert f(A()) == 1"},
            "test 1: f(A()) == 1: a test hands over an object of its own class A",
        ),
    ],
)
def test_tests_that_can_not_judge_are_refused(verifier: CodeVerifier, row: dict[str, Any], reason: str) -> None:
    result = judged(verifier, SQUARE, row)
    assert (result.verdict, result.score) == ("refused", None)
    assert result.reasons[0].startswith(reason)

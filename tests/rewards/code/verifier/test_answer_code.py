"""Which code an answer gives."""

from __future__ import annotations

import pytest

from rewards.code.verifier import answer_code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nand\n```python\nx = 2\n```\nDone.", "x = 2\n"),
        ("```python\nx = 1\n```\n```\noutput: 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```Python\r\nx = 1\r\n```\r\n", "x = 1\n"),
        ("1. first\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
        ("<think>```python\nx = 1\n```</think>```python\nx = 2\n```", "x = 2\n"),
        ("def f(x):\n    return x", "def f(x):\n    return x"),
        ("The answer is f of x.", "The answer is f of x."),
        ("```json\n{}\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```bash\npip install x\n```", "x = 1\n"),
    ],
)
def test_the_last_block_of_python_counts(answer: str, code: str) -> None:
    assert answer_code(answer) == code


@pytest.mark.parametrize("answer", ["", "   ", "```json\n{}\n```", "x" * (2 << 20)])
def test_an_answer_without_code_has_none(answer: str) -> None:
    assert answer_code(answer) is None

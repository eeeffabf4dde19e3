"""The plainest reward for rows: 1 for an answer that is the reference, letter by letter, else 0."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def exact_match(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
    """Whether the answer is `row["answer"]`, both without the blanks around them and in Unicode's form NFC."""
    return float(_plain(answer) == _plain(str(row["answer"])))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()

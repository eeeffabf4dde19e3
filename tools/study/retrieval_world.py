"""Rivers, documents about them, and questions that the documents answer or not: the world of the study of retrieval.

A document says of its river how long it is, how many bridges it has, both, or neither; some rivers have none. Names of
held-out questions stand in no train question, so that nothing but searching finds their answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: share of rivers without a document, and of facts that a document lacks
_NO_DOCUMENT, _NO_FACT = 0.15, 0.4
_HELD_OUT = 3
_BEGIN = ("Al", "Bor", "Cer", "Dal", "Es", "Far", "Gal", "Hol", "Il", "Kor", "Lam", "Mor", "Nar", "Ost", "Par")
_END = ("na", "rin", "vel", "dau")
_CITIES = ("Arn", "Bex", "Cort", "Dorn", "Elm", "Fenn")


@dataclass(frozen=True)
class River:
    """One river: what its document says of it, if it has one."""

    name: str
    city: str
    has_document: bool
    length: int | None
    bridges: int | None


def rivers(seed: int) -> list[River]:
    """All rivers of a world; every third is for held-out questions."""
    rng = random.Random(f"rivers {seed}")
    names = [begin + end for begin in _BEGIN for end in _END]
    rng.shuffle(names)
    return [_river(name, rng) for name in names]


def _river(name: str, rng: random.Random) -> River:
    has_document = rng.random() >= _NO_DOCUMENT
    length, bridges = rng.randint(100, 999), rng.randint(10, 99)
    return River(
        name,
        rng.choice(_CITIES),
        has_document,
        length if has_document and rng.random() >= _NO_FACT else None,
        bridges if has_document and rng.random() >= _NO_FACT else None,
    )


def write_world(folder: Path, seed: int) -> None:
    """Writes documents.jsonl, as `task.episode.corpora` reads it, and the questions, train.jsonl and heldout.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = (_document(number, river) for number, river in enumerate(rivers(seed)) if river.has_document)
    for name, rows in {
        "documents": documents,
        "train": _rows(seed, held_out=False),
        "heldout": _rows(seed, held_out=True),
    }.items():
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _document(number: int, river: River) -> dict[str, str]:
    facts = [f"The {river.name} flows through {river.city}."]
    facts += [f"It is {river.length} km long."] if river.length is not None else []
    facts += [f"There are {river.bridges} bridges."] if river.bridges is not None else []
    return {"id": f"d{number}", "title": river.name, "text": " ".join(facts)}


def _rows(seed: int, *, held_out: bool) -> Iterator[dict[str, Any]]:
    for number, river in enumerate(rivers(seed)):
        if (number % _HELD_OUT == 0) == held_out:
            yield _row(f"How many km long is the {river.name}?", river.length, number)
            yield _row(f"How many bridges has the {river.name}?", river.bridges, number)


def _row(question: str, fact: int | None, number: int) -> dict[str, Any]:
    known = fact is not None
    return {
        "question": question,
        "answer": str(fact) if known else "none",
        "known": known,
        "sources": [f"d{number}"] if known else [],
    }

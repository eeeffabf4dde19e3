"""Trains the small guard on the even rows of public sets: the odd rows are never read."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learner_jax.runtime import WeirError
from serving_bridge.guard_models import Classifier, coefficients, fitted, kernel_of
from tools.screening.measuring import Share

_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)
_FOLDS = 5
#: share of safe texts of the training half that may be refused, by cross-validation
_MAX_REFUSED = 0.05
_HARMLESS = 200

#: name, unsafe texts, safe texts
_Source = tuple[str, list[str], list[str]]


@dataclass(frozen=True)
class Trained:
    """A guard, and what cross-validation on the training half says of it.

    Attributes:
      penalty: that was chosen.
      shares: of each source's unsafe texts that were blocked, and safe ones that were refused, held out of a fold.
    """

    classifier: Classifier
    penalty: float
    shares: Sequence[Share]


def trained(folder: Path, *, seed: int = 0) -> Trained:
    """Fits the guard on what the folder has.

    AdvBench and XSTest give their even rows. The questions of GSM8K and the prompts of IFEval, where they are, count as
    safe. Penalty and threshold are chosen by cross-validation on these alone.

    Raises:
      WeirError: texts of a kind are missing.
    """
    sources = _sources(folder)
    texts = [text for _, unsafe, safe in sources for text in (*unsafe, *safe)]
    labels = [flag for _, unsafe, safe in sources for flag in (*(True for _ in unsafe), *(False for _ in safe))]
    if not any(labels) or all(labels):
        raise WeirError(f"expected safety_prompts/ and xstest/ in {str(folder)[:300]!a}")
    best: tuple[float, float, float] | None = None
    told = np.asarray(labels, bool)
    chosen = np.empty(0)
    kernel = kernel_of(texts)
    for penalty in _PENALTIES:
        held = _held_out(kernel, told, penalty, seed)
        threshold = _threshold(held[~told])
        recall = float((held[told] >= threshold).mean())
        if best is None or recall > best[0]:
            best, chosen = (recall, penalty, threshold), held
    assert best is not None
    _, penalty, threshold = best
    weights, bias = fitted(texts, labels, penalty=penalty)
    return Trained(Classifier(weights, bias, threshold), penalty, list(_shares(sources, chosen >= threshold)))


def _shares(sources: Sequence[_Source], blocked: np.ndarray) -> Iterator[Share]:
    """In the order of the texts: of each source the unsafe ones, then the safe ones."""
    place = 0
    for name, *kinds in sources:
        for texts, what in zip(kinds, ("unsafe texts blocked", "safe texts refused"), strict=True):
            if texts:
                yield Share(f"{name}: {what}", int(blocked[place : place + len(texts)].sum()), len(texts))
            place += len(texts)


def _threshold(safe: np.ndarray) -> float:
    """The lowest probability that refuses at most `_MAX_REFUSED` of the safe texts."""
    allowed = int(_MAX_REFUSED * len(safe))
    return float(min(1.0, np.nextafter(np.sort(safe)[len(safe) - 1 - allowed], 2.0)))


def _held_out(kernel: np.ndarray, labels: np.ndarray, penalty: float, seed: int) -> np.ndarray:
    """Each text's probability by a guard that was fitted without its fold."""
    order = np.random.default_rng(seed).permutation(len(labels))
    odds = np.empty(len(labels))
    for fold in range(_FOLDS):
        held, rest = order[fold::_FOLDS], np.setdiff1d(order, order[fold::_FOLDS])
        alpha = coefficients(kernel[np.ix_(rest, rest)], labels[rest].tolist(), penalty=penalty)
        odds[held] = kernel[np.ix_(held, rest)] @ alpha
    return 1 / (1 + np.exp(-odds))


def _sources(folder: Path) -> list[_Source]:
    found: list[_Source] = []
    path = folder / "safety_prompts" / "advbench.csv"
    if path.is_file():
        found.append(("AdvBench, even rows", [row["goal"] for row in _even(path)], []))
    path = folder / "xstest" / "xstest_prompts.csv"
    if path.is_file():
        rows = _even(path)
        unsafe, safe = ([row["prompt"] for row in rows if row["label"] == label] for label in ("unsafe", "safe"))
        found.append(("XSTest, even rows", unsafe, safe))
    for name, path, column in (
        ("GSM8K, questions", folder / "gsm8k" / "train.jsonl", "question"),
        ("IFEval, prompts", folder / "ifeval" / "input_data.jsonl", "prompt"),
    ):
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                found.append((name, [], [json.loads(line)[column] for line in itertools.islice(lines, _HARMLESS)]))
    return found


def _even(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))[::2]

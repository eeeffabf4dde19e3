"""A small guard of our own: logistic regression over hashed n-grams of words and characters, kept as plain data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from learner_jax.runtime import WeirError, printable

_FORMAT = "weir-guard-1"
_DIMENSIONS = 1 << 16
_WORD = re.compile(r"\w+")
_CHARACTER_GRAMS = (3, 4, 5)
_MAX_CHARS = 8_000
_MAX_STEPS = 50
_TOLERANCE = 1e-8


class ClassifierError(WeirError, ValueError):
    """A classifier can't be fitted or read."""

    can_heal = False


def features(text: str) -> dict[int, float]:
    """Hashed words, pairs of words, and 3 to 5 characters inside words: place -> value; of length 1 together.

    Signs come from the hash, so that collisions cancel out on average (Weinberger et al. 2009, arXiv 0902.2206).
    """
    words = _WORD.findall(text[:_MAX_CHARS].lower())
    names = [f"w {word}" for word in words]
    names += [f"p {first} {second}" for first, second in pairwise(words)]
    for word in words:
        padded = f" {word} "
        names += [f"c {padded[i : i + n]}" for n in _CHARACTER_GRAMS for i in range(len(padded) - n + 1)]
    found: dict[int, float] = {}
    for name in set(names):
        hashed = xxhash.xxh64_intdigest(name.encode("utf-8", "surrogatepass"))
        place = hashed % _DIMENSIONS
        found[place] = found.get(place, 0.0) + (1.0 if hashed >> 63 else -1.0)
    length = sum(value * value for value in found.values()) ** 0.5
    return {place: value / length for place, value in found.items()} if length else {}


@dataclass(frozen=True)
class Classifier:
    """Probability that a text asks for harm.

    Attributes:
      weights: float32 [dimensions].
      threshold: probability from which a text is unsafe.
    """

    weights: np.ndarray
    bias: float
    threshold: float

    def probability(self, text: str) -> float:
        """Within 0 to 1."""
        found = features(text)
        odds = self.bias + sum(float(self.weights[place]) * value for place, value in found.items())
        return float(1 / (1 + np.exp(-odds)))

    def is_unsafe(self, text: str) -> bool:
        return self.probability(text) >= self.threshold

    def write(self, path: Path) -> None:
        """As a safetensors file. Raises `OSError`."""
        metadata = {"format": _FORMAT, "bias": repr(self.bias), "threshold": repr(self.threshold)}
        save_file({"weights": self.weights}, path, metadata=metadata)

    @staticmethod
    def read(path: Path) -> Classifier:
        """The classifier of a file. Raises `ClassifierError`."""
        told = printable(str(path))[:300]
        if path.exists() and not path.is_file():
            raise ClassifierError(
                f"{told} is no file: expected the guard that `python -m tools.safety train --out` wrote"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata, weights = file.metadata() or {}, file.get_tensor("weights")
            if metadata.get("format") != _FORMAT or weights.shape != (_DIMENSIONS,) or not np.isfinite(weights).all():
                raise ValueError(f"expected {_FORMAT} with {_DIMENSIONS} weights")
            bias, threshold = float(metadata["bias"]), float(metadata["threshold"])
            if not np.isfinite(bias) or not 0 <= threshold <= 1:
                raise ValueError("bias or threshold is out of range")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise ClassifierError(f"{told} is no guard that Weir trained: {printable(str(error))[:200]}") from None
        return Classifier(weights.astype(np.float32), bias, threshold)


def fitted(texts: Sequence[str], unsafe: Sequence[bool], *, penalty: float) -> tuple[np.ndarray, float]:
    """Weights and bias of least L2-penalised cross-entropy, classes weighted to equal sums.

    The optimum is a combination of the texts' features (Kimeldorf and Wahba 1971). The bias is penalised like a weight.

    Args:
      penalty: of half the squared length of the weights.

    Raises:
      ClassifierError: there are not two classes.
    """
    alpha = coefficients(kernel_of(texts), unsafe, penalty=penalty)
    weights = np.zeros(_DIMENSIONS)
    for text, value in zip(texts, alpha, strict=True):
        for place, one in features(text).items():
            weights[place] += value * one
    return weights.astype(np.float32), float(alpha.sum())


def kernel_of(texts: Sequence[str]) -> np.ndarray:
    """Inner products of the features of all pairs, plus one for the bias; float64 [texts, texts]."""
    rows = [features(text) for text in texts]
    places = {place: column for column, place in enumerate(sorted({place for row in rows for place in row}))}
    dense = np.zeros((len(rows), len(places)), np.float32)
    for number, row in enumerate(rows):
        for place, value in row.items():
            dense[number, places[place]] = value
    return (dense @ dense.T).astype(np.float64) + 1.0


def coefficients(kernel: np.ndarray, unsafe: Sequence[bool], *, penalty: float) -> np.ndarray:
    """Dual coefficients of each text, by Newton's method; the log-odds of the texts are `kernel @ coefficients`.

    Raises:
      ClassifierError: there are not two classes.
    """
    labels = np.asarray(unsafe, np.float64)
    if not 0 < labels.sum() < len(labels):
        raise ClassifierError("expected texts of both kinds, unsafe and safe")
    weight = np.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    alpha = np.zeros(len(labels))
    for _ in range(_MAX_STEPS):
        probabilities = 1 / (1 + np.exp(-kernel @ alpha))
        gradient = weight * (probabilities - labels) + penalty * alpha
        curvature = weight * probabilities * (1 - probabilities)
        step = np.linalg.solve(curvature[:, None] * kernel + penalty * np.eye(len(labels)), gradient)
        alpha = alpha - step
        if np.abs(step).max() < _TOLERANCE:
            break
    return alpha

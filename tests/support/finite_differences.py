"""Gradients of float64 oracles by central differences, to hold automatic ones against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def gradient(function: Callable[[np.ndarray], float], at: np.ndarray, *, step: float = 1e-6) -> np.ndarray:
    """d function / d each entry of `at`; good to about 1e-9 relative where the function is smooth within `step`."""
    at = np.asarray(at, np.float64)
    out = np.zeros_like(at)
    for i in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[i] = step
        out[i] = (function(at + shift) - function(at - shift)) / (2 * step)
    return out

"""Rows of segments and prefixes, and attention over them in dense float64."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.models.attention import attend

Labels = tuple[np.ndarray, np.ndarray] | None


#: Rows as (tokens, number of the prefix segment); the rest of a row is padding.
PACKED = [[(37, None), (1, None), (50, None), (8, None)], [(60, None), (20, None)], []]


SHARED = [[(30, None), (20, 0), (25, 0), (9, None), (5, 3)], [(3, None), (60, 0), (2, 0)], [(96, None)]]


def labels(rows: Sequence[Sequence[tuple[int, int | None]]], length: int) -> tuple[np.ndarray, np.ndarray]:
    segments, prefixes = np.full((2, len(rows), length), -1, np.int32)
    for row, entries in enumerate(rows):
        start = 0
        for number, (tokens, prefix) in enumerate(entries):
            segments[row, start : start + tokens] = number
            prefixes[row, start : start + tokens] = number if prefix is None else prefix
            start += tokens
        assert start <= length
    return segments, prefixes


def operands(batch: int, length: int, heads: int, kv_heads: int, head_dim: int = 16, dtype: Any = jnp.float32) -> Any:
    """Queries, keys, values and the output's cotangent."""
    random = np.random.default_rng(7)
    sizes = (heads, kv_heads, kv_heads, heads)
    return tuple(jnp.asarray(random.standard_normal((batch, length, n, head_dim)), dtype) for n in sizes)


def oracle(query: Any, key: Any, value: Any, cotangent: Any, rows: Labels) -> list[np.ndarray]:
    """Output, dq, dk and dv from the definition, one row and one head at a time."""
    query, key, value, cotangent = (np.asarray(x, np.float64) for x in (query, key, value, cotangent))
    batch, length, heads, head_dim = query.shape
    group = heads // key.shape[2]
    output, dq, dk, dv = np.zeros_like(query), np.zeros_like(query), np.zeros_like(key), np.zeros_like(value)
    for b in range(batch):
        see = np.tril(np.ones((length, length), bool))
        if rows is not None:
            segments, prefixes = rows[0][b], rows[1][b]
            see &= (segments == segments[:, None]) | (segments == prefixes[:, None])
        for n in range(heads):
            q, k, v, g = query[b, :, n], key[b, :, n // group], value[b, :, n // group], cotangent[b, :, n]
            scores = np.where(see, q @ k.T / np.sqrt(head_dim), -np.inf)
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            output[b, :, n] = p @ v
            dp = g @ v.T
            ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) / np.sqrt(head_dim)
            dq[b, :, n] = ds @ k
            dk[b, :, n // group] += ds.T @ q
            dv[b, :, n // group] += p.T @ g
    return [output, dq, dk, dv]


def pulled_back(query: Any, key: Any, value: Any, cotangent: Any, rows: Labels, **kwargs: Any) -> list[jax.Array]:
    segments, prefixes = (None, None) if rows is None else rows

    @jax.jit
    def run(query: Any, key: Any, value: Any, cotangent: Any, segments: Any, prefixes: Any) -> Any:
        call = functools.partial(attend, segments=segments, prefixes=prefixes, **({"implementation": "xla"} | kwargs))
        output, pull_back = jax.vjp(call, query, key, value)
        return [output, *pull_back(cotangent)]

    return run(query, key, value, cotangent, segments, prefixes)


def real_slots(rows: Labels, like: Any) -> np.ndarray:
    return np.ones(like.shape[:2], bool) if rows is None else rows[0] >= 0


def silent_padding(cotangent: Any, rows: Labels) -> Any:
    return jnp.where(real_slots(rows, cotangent)[..., None, None], cotangent, 0)


def assert_close(got: Any, expected: Sequence[np.ndarray], rows: Labels, tolerance: float) -> None:
    """Relative to the largest entry; output on padding means nothing."""
    real = real_slots(rows, expected[0])
    for name, a, b in zip(("output", "dq", "dk", "dv"), got, expected, strict=True):
        a = np.asarray(a, np.float64)
        assert np.isfinite(a).all(), name
        a, b = (a[real], b[real]) if name == "output" else (a, b)
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from equations(inner)

"""Under `make shapes` a wrong shape or dtype fails where it is passed on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from jaxtyping import Array, Float, Int, TypeCheckError, jaxtyped

from tests.support.shapes import checked


@jaxtyped(typechecker=checked)
def scaled(
    values: Float[np.ndarray, "B T"], weights: Float[np.ndarray, "B 1"] | None, name: int
) -> Float[np.ndarray, "B T"]:
    return values * (1 if weights is None else weights)


@jaxtyped(typechecker=checked)
def first_row(values: Float[np.ndarray, "B T"]) -> Float[np.ndarray, "B T"]:
    return values[0]


@jaxtyped(typechecker=checked)
@dataclass(frozen=True)
class Pytree:
    rows: Int[Array, "B T"]


@jaxtyped(typechecker=checked)
@dataclass(frozen=True)
class Plain:
    rows: Int[np.ndarray, "B T"]


def test_what_fits_passes_and_other_hints_are_not_looked_at() -> None:
    values = np.ones((2, 3), np.float32)
    assert scaled(values, np.full((2, 1), 2.0, np.float32), "a name").sum() == 12  # type: ignore[arg-type]
    assert scaled(values, None, 0) is not values


@pytest.mark.parametrize(
    "arguments",
    [
        (np.ones(3, np.float32), None),
        (np.ones((2, 3), np.int32), None),
        (np.ones((2, 3), np.float32), np.ones((3, 1), np.float32)),
    ],
    ids=["rank", "dtype", "size"],
)
def test_an_argument_that_does_not_fit_is_refused(arguments: tuple[np.ndarray, np.ndarray | None]) -> None:
    with pytest.raises(TypeCheckError):
        scaled(*arguments, 0)


def test_a_result_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        first_row(np.ones((2, 3), np.float32))


def test_records_of_the_host_are_checked_and_pytrees_are_not() -> None:
    Pytree("a sharding")  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        Plain(np.ones(3, np.int32))

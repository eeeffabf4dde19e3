"""What every table of settings does with values before its own checks see them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from learner_jax.contracts import Settings


class Table(Settings):
    count: int = 1
    seed: int = Field(0, le=2**80)
    share: float = 0.5
    wait_s: float = 1.0
    limit: float | None = None
    band: tuple[float, float] | None = None
    lengths: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"share": 1}, 1.0),
        ({"limit": 2}, 2.0),
        ({"band": [1, 2.5]}, (1.0, 2.5)),
        ({"lengths": [1, 2]}, (1, 2)),
        ({"seed": 2**70}, 2**70),
        ({"count": 2**31 - 1}, 2**31 - 1),
        ({"wait_s": 1e8}, 1e8),
        ({"wait_s": 100_000_000}, 1e8),
        ({"share": 1e9}, 1e9),
    ],
)
def test_values_are_taken_as_they_are_meant(given: dict[str, Any], meant: Any) -> None:
    (name,) = given
    found = getattr(Table.model_validate(given), name)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wait_s": 1.1e8}, r"expected at most 1e\+08 seconds, got 1.1e\+08"),
        ({"count": 2**31}, "expected a number of at most 2147483647, got 2147483648"),
        ({"count": 10**400}, "got one of 1329 bits"),
        ({"share": 10**400}, "expected a number of at most"),
        ({"count": -(10**400)}, "expected a number of at most"),
        ({"lengths": [1, 10**400]}, "expected a number of at most"),
        ({"count": 1.0}, "valid integer"),
        ({"share": True}, "valid number"),
        ({"wait_s": float("inf")}, "finite number"),
        ({"other": 1}, "Extra inputs"),
    ],
)
def test_values_that_no_setting_has_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Table.model_validate(given)


def test_a_table_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Table().count = 2

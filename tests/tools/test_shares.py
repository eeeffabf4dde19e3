"""The interval of a share, against scipy's."""

from __future__ import annotations

import pytest

from tools.shares import wilson


def test_the_interval_is_wilsons() -> None:
    """Values of scipy.stats.binomtest(...).proportion_ci(method="wilson")."""
    assert wilson(0, 1000) == pytest.approx((0.0, 0.003827), abs=1e-5)
    assert wilson(3, 1000) == pytest.approx((0.001021, 0.008783), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)

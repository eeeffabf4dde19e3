"""How far a share of cases can be believed."""

from __future__ import annotations

_Z = 1.96


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share, `count` of `total` cases (Wilson 1927); 0 to 1 where there are no cases."""
    if not total:
        return 0.0, 1.0
    share, width = count / total, _Z**2 / total
    middle = (share + width / 2) / (1 + width)
    half = _Z / (1 + width) * (share * (1 - share) / total + width / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)

"""Which faults a seed draws."""

from __future__ import annotations

from collections import Counter

from tools.testing.chaos.engines import ENGINES
from tools.testing.chaos.plan import KINDS, draw


def test_a_seed_draws_the_same_faults_and_all_kinds_come() -> None:
    assert draw(7, "fake") == draw(7, "fake")
    kinds = Counter(fault.kind for seed in range(200) for fault in draw(seed, "fake"))
    assert set(kinds) == set(KINDS)
    for engine, traits in ENGINES.items():
        drawn = {fault.how for seed in range(400) for fault in draw(seed, engine) if fault.kind == "engine"}
        assert drawn == set(traits.disturbances)

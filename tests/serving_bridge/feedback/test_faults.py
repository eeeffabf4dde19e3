"""Recordings, feedback, datasets and online groups under kills, cuts, clock jumps, repeats and withdrawals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from serving_bridge.text import Tokenizer
from tests.support.feedback_faults import simulated
from tests.support.session_world import tokenizer

__all__ = ["tokenizer"]


@pytest.mark.parametrize("seed", range(3))
def test_it_holds(seed: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    deployment = simulated(seed, tmp_path, tokenizer, steps=80)
    assert deployment.violations() == []
    assert deployment.ended
    deployment.close()


@pytest.mark.soak
def test_it_holds_at_200_seeds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    faults: Counter[str] = Counter()
    failed, trained = {}, 0
    for seed in range(200):
        folder = tmp_path / str(seed)
        folder.mkdir()
        deployment = simulated(seed, folder, tokenizer)
        if found := deployment.violations():
            failed[seed] = found
        faults.update(deployment.faults)
        trained += len(deployment.trained)
        deployment.close()
    assert failed == {}
    assert set(faults) >= {"kill", "jump", "ask", "send", "emit"} - {"ask"}
    assert trained > 200

"""A pause is measured by answers that go on after it."""

from __future__ import annotations

import pytest

from tools.bench import BenchmarkError
from tools.bench.weights.sync_pause import check_goes_on


def test_answers_that_ended_before_the_pause_show_nothing_of_it() -> None:
    check_goes_on([[0.1, 0.2], [0.1]], 3)
    with pytest.raises(BenchmarkError, match="1 of 2 answers of 2 tokens ended before the pause did: raise --tokens"):
        check_goes_on([[0.1, 0.2], [0.1]], 2)

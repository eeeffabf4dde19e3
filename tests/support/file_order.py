"""The order of the tests' files in a whole run: the longest first, so that no worker is left with one at the end."""

from __future__ import annotations

import pytest

from tests.support.shared_servers import FILES, FORKING, INSTALLING, LOADING_VLLM, file_of

#: What takes the longest, the longest first; all others follow in the order of their names.
LONG_FILES = (
    "tests/system/test_end_to_end.py",
    *FORKING,
    *FILES,
    *LOADING_VLLM,
    "tests/tools/testing/chaos/test_jobs.py",
    "tests/learner_jax/training/test_objective.py",
    *INSTALLING,
    "tests/learner_jax/loop/test_learner.py",
    "tests/serving_bridge/fleet/test_fleet.py",
    "tests/tools/evaluation/test_on_vllm.py",
    "tests/learner_jax/training/test_train_step.py",
    "tests/learner_jax/training/test_compile_ahead.py",
    "tests/system/test_fleet_processes.py",
    "tests/system/test_full_disk.py",
)


def longest_first(items: list[pytest.Item]) -> None:
    """Brings the tests of `LONG_FILES` to the front, in that order; those of a file stay as they are."""
    place = {file: index for index, file in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(file_of(item.nodeid), len(place)))

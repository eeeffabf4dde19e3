"""One status of a replica from those of its workers: the least advanced one counts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from serving_bridge.vllm.worker_status import WorkerReport, WorkerStatus, merge


def report(state: Any, staged: int | None = None, **fields: Any) -> WorkerReport:
    given = {"error": "", "damaged": False, "applied": 3, "intact": True} | fields
    return WorkerReport(state=state, staged=staged, **given)


def test_one_worker_is_the_replica() -> None:
    assert merge([report("staged", 4)]) == WorkerStatus("staged", 4, "", False, 3, True)
    assert merge([report("applied", None, applied=4)]) == WorkerStatus("applied", None, "", False, 4, True)


@pytest.mark.parametrize(
    ("behind", "ahead"), list(itertools.pairwise(("failed", "idle", "reading", "staged", "applied"))), ids=str
)
def test_the_least_advanced_state_is_that_of_all(behind: str, ahead: str) -> None:
    assert merge([report(ahead), report(behind), report(ahead)]).state == behind


def test_a_version_is_staged_where_all_that_lack_it_have_staged_it() -> None:
    assert merge([report("staged", 4), report("staged", 4)]).staged == 4
    assert merge([report("staged", 4), report("staged", 5)]).staged is None
    assert merge([report("staged", 4), report("reading")]).staged is None
    assert merge([report("staged", 4), report("applied", None, applied=4)]).staged == 4


def test_one_worker_that_is_torn_damaged_or_of_another_version_makes_the_replica_so() -> None:
    sound, torn = report("idle"), report("idle", intact=False)
    assert [merge(pair).intact for pair in ([sound, sound], [sound, torn], [torn, sound])] == [True, False, False]
    assert merge([sound, report("failed", damaged=True)]).damaged
    mixed = merge([sound, report("idle", applied=4)])
    assert (mixed.applied, mixed.intact) == (None, False)
    assert merge([report("idle", applied=None)] * 2).applied is None


def test_every_reason_is_told_once() -> None:
    workers = [report("failed", error="no\x1b file"), report("failed", error="no disk"), report("idle")]
    assert merge([*workers, workers[0]]).error == "no\\x1b file; no disk"

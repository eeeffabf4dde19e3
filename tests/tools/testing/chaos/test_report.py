"""The report of the chaos harness counts by fault, and names what is wrong."""

from __future__ import annotations

import json

from tools.testing.chaos import report
from tools.testing.chaos.job import JobRecord, SeedRecord


def test_the_report_counts_by_fault_and_names_what_is_wrong() -> None:
    seeds = [
        SeedRecord(0, ["kill engine"], recovered_s=2.0, verdict="recovered"),
        SeedRecord(1, ["kill engine", "full weights"], 4.0, ["full weights: no mounts"], "recovered"),
        SeedRecord(2, ["kill engine"], None, verdict="waited 60 s for progress"),
        SeedRecord(3, ["stop worker"]),
    ]
    wrong = JobRecord("/kept/job-0", seeds, ["waited 60 s for progress"])
    found = report.tallies([wrong])
    assert (found["kill engine"].count, found["kill engine"].failed, found["full weights"].skipped) == (3, 1, 1)
    assert found["kill engine"].recovered_s == [2.0, 4.0]
    assert "stop worker" not in found
    record = json.loads(report.as_json([wrong], engine="fake", commit="abc", clean_correct=90, seconds=1.0))
    assert (record["seeds"], record["seeds_late"], record["jobs_wrong"]) == (3, 1, 1)
    assert record["faults"]["kill engine"] == {
        "count": 3, "skipped": 0, "failed": 1, "median_s": 2.0, "p90_s": 4.0, "max_s": 4.0
    }  # fmt: skip
    text = "\n".join(report.failures([wrong], commit="abc", engine="fake", per_job=10))
    for part in ("seed 2, commit abc", "--jobs-seeds 10 --seed 2", "/kept/job-0"):
        assert part in text

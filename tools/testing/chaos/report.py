"""What all jobs together showed: a table for people, a record for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from tools.testing.chaos.engines import EngineName
from tools.testing.chaos.job import JobRecord, SeedRecord

_RECORD_SCHEMA = 1


@dataclass
class Tally:
    """One kind of fault over all seeds in which it was; the seeds' recovery counts for each of their faults."""

    count: int = 0
    skipped: int = 0
    failed: int = 0
    recovered_s: list[float] = field(default_factory=list)


def tallies(jobs: Sequence[JobRecord]) -> dict[str, Tally]:
    """By name of fault, in alphabetical order."""
    found: dict[str, Tally] = {}
    for record in (record for job in jobs for record in job.seeds if record.verdict != "late"):
        for name in record.faults:
            tally = found.setdefault(name, Tally())
            tally.count += 1
            tally.skipped += any(reason.startswith(f"{name}: ") for reason in record.skipped)
            if record.recovered_s is None:
                tally.failed += 1
            else:
                tally.recovered_s.append(record.recovered_s)
    return dict(sorted(found.items()))


def quantile(values: Sequence[float], share: float) -> float:
    """Smallest value that at least this share of the values does not exceed; NaN if there are none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def table(jobs: Sequence[JobRecord]) -> Table:
    """One row per fault, and one for all seeds."""
    shown = Table(title="faults in running jobs, and seconds until the job worked again")
    for name in ("fault", "seeds", "not brought about", "median s", "p90 s", "max s", "verdict"):
        shown.add_column(name, justify="left" if name in ("fault", "verdict") else "right")
    for name, tally in tallies(jobs).items():
        verdict = f"{tally.failed} failed" if tally.failed else "recovered"
        shown.add_row(name, str(tally.count), str(tally.skipped or ""), *_seconds(tally.recovered_s), verdict)
    begun = [record for job in jobs for record in job.seeds if record.verdict != "late"]
    wrong = sum(bool(job.problems) for job in jobs)
    times = [record.recovered_s for record in begun if record.recovered_s is not None]
    verdict = f"{wrong} of {len(jobs)} jobs wrong" if wrong else f"all {len(jobs)} jobs right"
    shown.add_section()
    shown.add_row("all", str(len(begun)), "", *_seconds(times), verdict)
    return shown


def _seconds(values: Sequence[float]) -> list[str]:
    return [f"{quantile(values, share):.1f}" if values else "" for share in (0.5, 0.9, 1.0)]


def as_json(
    jobs: Sequence[JobRecord], *, engine: EngineName, commit: str, clean_correct: int | None, seconds: float
) -> str:
    """Everything, with a summary by fault."""
    begun = [record for job in jobs for record in job.seeds if record.verdict != "late"]
    return json.dumps(
        {
            "schema": _RECORD_SCHEMA,
            "engine": engine,
            "commit": commit,
            "seconds": round(seconds, 1),
            "seeds": len(begun),
            "seeds_late": sum(len(job.seeds) for job in jobs) - len(begun),
            "jobs": len(jobs),
            "jobs_wrong": sum(bool(job.problems) for job in jobs),
            "clean_correct": clean_correct,
            "faults": {
                name: {
                    "count": tally.count,
                    "skipped": tally.skipped,
                    "failed": tally.failed,
                    **{key: _rounded(quantile(tally.recovered_s, share)) for key, share in _QUANTILES.items()},
                }
                for name, tally in tallies(jobs).items()
            },
            "records": [dataclasses.asdict(job) for job in jobs],
        },
        indent=1,
    )


_QUANTILES = {"median_s": 0.5, "p90_s": 0.9, "max_s": 1.0}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def failures(jobs: Sequence[JobRecord], *, commit: str, engine: EngineName, per_job: int) -> list[str]:
    """For each job with something wrong: what, in which seed, at which commit, and how to see it again."""
    lines = []
    for job in jobs:
        if not job.problems:
            continue
        seed = _guilty(job.seeds)
        where = f"seed {seed}" if seed is not None else "a run without faults"
        lines.append(f"{where}, commit {commit}: " + "; ".join(job.problems))
        again = f"  python -m tools.testing.chaos --engine {engine} --jobs-seeds {per_job} --seed {seed}"
        lines.append(again if seed is not None else "")
        lines.append(f"  the job's folder is {job.folder}")
    return [line for line in lines if line]


def _guilty(seeds: Sequence[SeedRecord]) -> int | None:
    """The seed that broke off, or the last that was begun."""
    begun = [record for record in seeds if record.verdict != "late"]
    broken = [record for record in begun if record.recovered_s is None]
    return (broken or begun[-1:])[0].seed if begun else None

"""Whether rows of a run's data are asked nowhere, since their questions stand in several splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rewards.contracts import Task
from rewards.tasks import FramedTask, MixtureTask, RowsTask
from serving_bridge.checks import Finding


def sources_of(task: Task) -> Mapping[str, Task]:
    """The tasks that problems come from, by label; "" where there is one."""
    found = task.sources if isinstance(task, MixtureTask) else {"": task}
    return {label: source.inner if isinstance(source, FramedTask) else source for label, source in found.items()}


def row_findings(task: Task) -> Iterator[Finding]:
    """A warning for each split that rows were left out of."""
    for label, source in sources_of(task).items():
        if not isinstance(source, RowsTask):
            continue
        for split, number in source.left_out.overlapping.items():
            if number:
                where = f"{split} of source {label!r}" if label else split
                yield Finding(
                    "task.data" if split == "train" else f"task.{split}_data",
                    "questions of one split alone",
                    f"{number} rows of {where} whose questions are in another split; they are left out there",
                    "take them out of one of the files",
                    "warning",
                )

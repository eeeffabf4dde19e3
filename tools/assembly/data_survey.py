"""What a run's data are: counts, columns, lengths, questions that are nearly the same, and the first prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from learner_jax.runtime import WeirError
from rewards.contracts import Problem, Split, Task, TaskError
from rewards.data import SPLITS, RowTable, twins
from rewards.tasks import MixtureTask, RowsTask
from serving_bridge.checks import Finding
from serving_bridge.evaluation import PromptEncoder
from tools.assembly.row_checks import row_findings, sources_of
from tools.assembly.start_checks import Subject, look_at_problems

#: problems of a split that are looked at, where a task makes them without end
_GENERATED = 1000
_EXAMPLES = 3


@dataclass(frozen=True)
class ColumnSurvey:
    """One column of a source: rows by type, rows without it, and the characters of its longest text."""

    types: Mapping[str, int]
    missing: int
    longest: int


@dataclass(frozen=True)
class SourceSurvey:
    """One source.

    Attributes:
      files: by split, where its rows come from, and how many there are.
      columns: of the train rows that were looked at.
      problems: distinct ones by split; None where they are made without end.
      repeated_rows: train rows whose question stands in an earlier one.
      left_out: by split, rows that are asked nowhere, since their question is in a split that must not share it.
      share: of the train prompts.
    """

    label: str
    version: str
    files: Mapping[str, tuple[str, int]]
    columns: Mapping[str, ColumnSurvey]
    problems: Mapping[Split, int | None]
    repeated_rows: int
    left_out: Mapping[Split, int]
    share: float


@dataclass(frozen=True)
class LengthSurvey:
    """Lengths of the prompts of a split that were looked at, in `unit`."""

    unit: str
    looked_at: int
    least: int
    median: int
    percentile_95: int
    most: int


@dataclass(frozen=True)
class NearSurvey:
    """Questions of one split that are nearly the same as one of another, or as an earlier one of the same.

    Attributes:
      number: of the first split's questions that have a twin in the second.
      looked_at: of the first split.
      examples: (question, its twin, similarity).
    """

    split: Split
    other: Split
    number: int
    looked_at: int
    examples: Sequence[tuple[str, str, float]]


@dataclass(frozen=True)
class DataSurvey:
    """All of it; `no_tokenizer` says why lengths are in characters and prompts are no tokens, where they are not."""

    sources: Sequence[SourceSurvey]
    lengths: Mapping[Split, LengthSurvey]
    near: Sequence[NearSurvey]
    prompts: Sequence[str]
    findings: Sequence[Finding]
    no_tokenizer: str = ""

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_fields(self) -> dict[str, Any]:
        return asdict(self)


def survey_data(subject: Subject, *, most: int, most_near: int, num_prompts: int) -> DataSurvey:
    """Looks at the data of a run.

    Args:
      most: rows whose columns, and problems of a split whose lengths are looked at.
      most_near: problems of a split that are compared with each other; 0 compares none.
      num_prompts: first prompts that are shown.

    Raises:
      TaskError, DoorError: the task can't be made.
    """
    task = subject.task()
    encoder, why = _encoder(subject)
    findings = list(_findings(subject)) if encoder is not None else list(row_findings(task))
    problems = {split: list(_problems(task, split, most)) for split in SPLITS}
    near = list(_near({split: found[:most_near] for split, found in problems.items()})) if most_near else []
    template = subject.config.task.prompt_template
    return DataSurvey(
        sources=list(_sources(task, most)),
        lengths={split: _lengths(found, encoder) for split, found in problems.items() if found},
        near=near,
        prompts=[_shown(problem, encoder, template) for problem in problems["train"][:num_prompts]],
        findings=[*findings, *_near_findings(near)],
        no_tokenizer=why,
    )


def _encoder(subject: Subject) -> tuple[PromptEncoder | None, str]:
    try:
        return subject.encoder(), ""
    except (WeirError, OSError) as error:
        return None, str(error)


def _findings(subject: Subject) -> Iterator[Finding]:
    """What a start of `tools.train` would find; what ends the look is an error among them."""
    try:
        yield from look_at_problems("train", subject)
    except WeirError as error:
        yield Finding("task", "", str(error), "", "error")


def _problems(task: Task, split: Split, most: int) -> Iterator[Problem]:
    known = task.num_distinct(split)
    for index in range(min(most, _GENERATED) if known is None else min(most, known)):
        try:
            yield task.problem(split, index)
        except TaskError:
            if known is not None:
                raise
            return  # a generator has no more


def _sources(task: Task, most: int) -> Iterator[SourceSurvey]:
    shares = task.shares if isinstance(task, MixtureTask) else {"": 1.0}
    for label, source in sources_of(task).items():
        yield _source(label, source, shares[label], most)


def _source(label: str, task: Task, share: float, most: int) -> SourceSurvey:
    tables: Mapping[Split, RowTable] = task.tables if isinstance(task, RowsTask) else {}
    return SourceSurvey(
        label=label,
        version=task.version,
        files={split: (table.origin, len(table)) for split, table in tables.items()},
        columns=_columns(tables["train"], most) if tables else {},
        problems={split: task.num_distinct(split) for split in SPLITS},
        repeated_rows=task.epoch_size - (task.num_distinct("train") or 0) if isinstance(task, RowsTask) else 0,
        left_out=dict(task.left_out.overlapping) if isinstance(task, RowsTask) else {},
        share=share,
    )


def _columns(table: RowTable, most: int) -> dict[str, ColumnSurvey]:
    types: dict[str, Counter[str]] = {}
    longest: Counter[str] = Counter()
    count = 0
    for columns in islice(table.rows(), most):
        count += 1
        for name, value in columns.items():
            types.setdefault(name, Counter())[_type_name(value)] += 1
            longest[name] = max(longest[name], len(value) if isinstance(value, str) else 0)
    return {
        name: ColumnSurvey(dict(found), count - sum(found.values()), longest[name]) for name, found in types.items()
    }


def _type_name(value: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _lengths(problems: Sequence[Problem], encoder: PromptEncoder | None) -> LengthSurvey:
    if encoder is None:
        unit, lengths = "characters", [len(problem.question) for problem in problems]
    else:
        unit, lengths = "tokens", [len(encoder.tokens(problem)) for problem in problems]
    median, high = np.percentile(lengths, (50, 95), method="higher")
    return LengthSurvey(unit, len(lengths), min(lengths), int(median), int(high), max(lengths))


def _shown(problem: Problem, encoder: PromptEncoder | None, template: str) -> str:
    """The prompt with its special tokens, as the model gets it."""
    if encoder is None:
        return template.replace("{question}", problem.question) if problem.prompt is None else str(problem.prompt)
    return str(encoder.tokenizer.backend.decode(encoder.tokens(problem), skip_special_tokens=False))


def _near(problems: Mapping[Split, Sequence[Problem]]) -> Iterator[NearSurvey]:
    order: tuple[Split, ...] = ("heldout", "validation", "train")
    texts = [problem.question for split in order for problem in problems[split]]
    groups = [split for split in order for _ in problems[split]]
    found: dict[tuple[Split, Split], dict[int, tuple[str, str, float]]] = {}
    for twin in twins(texts, groups=groups):
        later, earlier = groups[twin.number], groups[twin.of]
        # Of two splits, what counts are the problems that are held out, and not how often they stand in train.
        key, number = ((later, earlier), twin.number) if later == earlier else ((earlier, later), twin.of)
        found.setdefault(key, {}).setdefault(number, (texts[twin.of], texts[twin.number], twin.similarity))
    for (split, other), pairs in sorted(found.items()):
        yield NearSurvey(split, other, len(pairs), len(problems[split]), list(pairs.values())[:_EXAMPLES])


def _near_findings(near: Sequence[NearSurvey]) -> Iterator[Finding]:
    for found in near:
        if found.split != found.other:
            yield Finding(
                "task.data",
                "",
                f"{found.number} of {found.looked_at} {found.split} problems are nearly the same as {found.other} ones",
                "take their kind out of one of the splits, or their score says little",
                "warning",
            )

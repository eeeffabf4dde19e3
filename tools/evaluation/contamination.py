"""Which problems of a suite have so many words in a row that a training prompt has, too.

Source: T. Brown et al., Language Models are Few-Shot Learners, arXiv 2005.14165, appendix C: overlap of n-grams of
words, without case and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.load import load_config
from rewards.contracts import TaskError
from rewards.data import open_file, text_of
from rewards.tasks import create_task
from tools.evaluation.errors import SuiteError
from tools.evaluation.problems import OpenSuite

WORDS = 13
_TOLD_EVERY = 10_000
_WORD = re.compile(r"\w+")
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Training:
    """Where training prompts come from.

    Attributes:
      source: file of rows, or a run's configuration, whose task's train split is read.
      column: of the file's rows.
      ngram: words in a row that count as overlap; of a shorter question, all of its words.
      limit: of the task's problems that are looked at.
    """

    source: str
    column: str = "question"
    ngram: int = WORDS
    limit: int = 100_000

    def prompts(self) -> Iterator[str]:
        """The prompts, one by one.

        Raises:
          SuiteError: a row can't be read, or there are none.
          ConfigError, TaskError: the configuration or its task can't be used.
        """
        return self._of_file() if self.source.lower().endswith(_FILES) else self._of_task()

    def _of_file(self) -> Iterator[str]:
        try:
            source = open_file(self.source, setting="the file of training prompts")
            for row in source.scan():
                if self.column not in row.columns:
                    raise SuiteError(
                        f"{row.where} has no {self.column!r}, only {', '.join(map(repr, row.columns))[:500]}; name the "
                        f"column of the prompts with --contamination-column"
                    )
                yield text_of(row.columns, self.column, row.where)
        except TaskError as error:
            raise SuiteError(str(error)) from None

    def _of_task(self) -> Iterator[str]:
        config = load_config(self.source)
        task = create_task(config.task, seed=config.run.seed)
        try:
            distinct = task.num_distinct("train")
            number = min(self.limit, config.task.num_problems if distinct is None else distinct)
            for index in range(number):
                yield task.problem("train", index).question
        finally:
            task.close()


@dataclass(frozen=True)
class Overlap:
    """What a suite shares with training prompts.

    Attributes:
      share: of the suite's problems, those that overlap.
      num_identical: problems all of whose words are one training prompt's.
      problems: ids of those that overlap, in the suite's order.
    """

    source: str
    ngram: int
    num_training_prompts: int
    num_overlapping: int
    num_identical: int
    share: float
    problems: tuple[str, ...]

    def as_fields(self) -> dict[str, Any]:
        return {**asdict(self), "problems": list(self.problems)}


def overlaps(
    suites: Iterable[OpenSuite], training: Training, told: Callable[[int], object] = lambda number: None
) -> list[Overlap]:
    """The overlap of each suite; the training prompts are read once and not kept.

    Args:
      told: of every ten thousandth prompt, how many were read by then.

    Raises:
      SuiteError: there are no training prompts, or they can't be read.
    """
    suites = list(suites)
    wanted: dict[int, dict[tuple[str, ...], set[tuple[int, int]]]] = {}
    whole: dict[tuple[str, ...], set[tuple[int, int]]] = {}
    for at, suite in enumerate(suites):
        for number, problem in enumerate(suite.problems):
            words = words_of(problem.question)
            length = min(training.ngram, len(words))
            whole.setdefault(tuple(words), set()).add((at, number))
            for gram in ngrams(words, length):
                wanted.setdefault(length, {}).setdefault(gram, set()).add((at, number))
    found, identical, count = set[tuple[int, int]](), set[tuple[int, int]](), 0
    for prompt in training.prompts():
        words, count = words_of(prompt), count + 1
        if not count % _TOLD_EVERY:
            told(count)
        identical |= whole.get(tuple(words), set()) if words else set()
        for length, known in wanted.items():
            for gram in ngrams(words, length):
                if gram in known:
                    found |= known[gram]
    if not count:
        raise SuiteError(f"{training.source} holds no training prompts")
    return [_overlap(at, suite, training, found, identical, count) for at, suite in enumerate(suites)]


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.casefold())


def ngrams(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every run of so many words; none where `length` is 0."""
    if length:
        yield from zip(*(words[start:] for start in range(length)), strict=False)


def _overlap(
    at: int,
    suite: OpenSuite,
    training: Training,
    found: set[tuple[int, int]],
    identical: set[tuple[int, int]],
    count: int,
) -> Overlap:
    names = tuple(problem.id for number, problem in enumerate(suite.problems) if (at, number) in found)
    same = sum((at, number) in identical for number in range(len(suite.problems)))
    share = len(names) / len(suite.problems)
    source = Path(training.source).name
    return Overlap(source, training.ngram, count, len(names), same, share, names)

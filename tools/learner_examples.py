"""Supervised examples of a run: rows are read and rendered once, and their token ids are kept in its directory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from configs.schema import Config
from learner_jax.batches import Example, ExampleFiles, write_examples
from learner_jax.settings import SupervisedSettings
from rewards.contracts import Problem, TaskError
from rewards.data import RowTable, open_table
from rewards.settings import ProblemSettings
from serving_bridge.evaluation import PromptEncoder

_NAME = "examples"


def supervised_examples(
    config: Config, settings: SupervisedSettings, directory: Path, encoder: PromptEncoder
) -> ExampleFiles:
    """The examples of [supervised], of pairs the chosen and the rejected one of each row in turn.

    What was rendered before with the same settings and the same tokenizer is taken as it is: a restart trains on the
    same ids, also if the file has changed since.

    Raises:
      TaskError, DoorError: a row can't be used.
      BatchError: an example is too long, or what was rendered before is damaged.
    """
    folder, facts = directory / _NAME, _facts(config, settings, encoder)
    per_row = 2 if settings.loss == "dpo" else 1
    if folder.exists():
        found = ExampleFiles(folder, per_row=per_row)
        if found.facts == facts:
            return found
        raise TaskError(
            f"{folder} was rendered with other settings of [supervised], or by another tokenizer: a run keeps the "
            f"examples that it began with; start another run"
        )
    from serving_bridge.feedback import note_copy  # which reinforcement learning need not import

    try:
        reading = _reading(config, settings)
        table = open_table(settings.data, reading, setting="supervised.data", options=settings.options)
    except TaskError as error:
        raise TaskError(re.sub(r"\btask\.(?=[a-z]+_column\b)", "supervised.", str(error))) from None
    sessions: list[str] = []
    try:
        note_copy(Path(settings.data), folder)  # before: a withdrawal that comes meanwhile looks for it again
        write_examples(folder, _rendered(table, config, settings, encoder, sessions), facts, sessions)
    except OSError as error:
        raise TaskError(f"supervised.data {settings.data}: {error}") from error
    finally:
        table.close()
    return ExampleFiles(folder, per_row=per_row)


def _reading(config: Config, settings: SupervisedSettings) -> ProblemSettings:
    """How rows are read: as those of a task."""
    return ProblemSettings(
        provider="rows",
        data=settings.data,
        options=settings.options,
        question_column=settings.question_column,
        answer_column=settings.answer_column,
        messages_column=settings.messages_column,
        system_column=settings.system_column,
        system=config.task.system,
        prompt_template="{question}" if settings.messages_column else config.task.prompt_template,
        num_problems=settings.max_examples,
    )


def _rendered(
    table: RowTable, config: Config, settings: SupervisedSettings, encoder: PromptEncoder, sessions: list[str]
) -> Iterator[Example]:
    """The examples of all rows; each row's recorded session is added to `sessions`."""
    longest = config.learner.sequence_length
    for number in range(len(table)):
        problem, where = table.problem(number), f"{table.origin}, row {number + 1}"
        sessions.append(_session(problem))
        for answer in _answers(problem, settings, where):
            tokens, mask = encoder.supervised(problem, answer)
            if len(tokens) > longest:
                raise TaskError(
                    f"{where}: prompt and answer have {len(tokens)} tokens, expected at most {longest} "
                    f"(learner.sequence_length)"
                )
            yield tokens, mask


def _session(problem: Problem) -> str:
    """The recorded session that a row is from, as datasets of feedback say; "" where it says none."""
    found = problem.metadata.get("session_id")
    return found if isinstance(found, str) else ""


def _answers(problem: Problem, settings: SupervisedSettings, where: str) -> list[str]:
    """The answers of a row: one, or the chosen and the rejected one."""
    if settings.loss != "dpo":
        return [problem.answer]
    rejected = problem.metadata.get(settings.rejected_column)
    if not isinstance(rejected, str) or not rejected:
        raise TaskError(
            f"{where}: {settings.rejected_column!r} is {rejected!r:.100}, expected the text of the rejected answer; "
            f"set supervised.rejected_column"
        )
    return [problem.answer, rejected]


def _facts(config: Config, settings: SupervisedSettings, encoder: PromptEncoder) -> dict[str, str]:
    read = _reading(config, settings).model_dump(mode="json")
    shown = json.dumps([read, settings.loss, settings.rejected_column, config.task.chat], sort_keys=True)
    return {"settings": hashlib.sha256(shown.encode()).hexdigest(), "tokenizer": encoder.tokenizer.fingerprint}

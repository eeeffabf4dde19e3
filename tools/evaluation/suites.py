"""The schema of a suite: a TOML file of which problems are asked, how answers are sampled and who scores them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from learner_jax.runtime import Pattern, printable
from rewards.contracts import Split
from rewards.settings import TaskSettings
from serving_bridge.text import REFUSALS
from tools.evaluation.errors import SuiteError
from tools.evaluation.estimators import MAX_SAMPLES

SHIPPED = Path(__file__).parents[2] / "configs" / "suites"
#: vLLM samples at this temperature where a lower one is asked for
_MIN_TEMPERATURE = 0.01
_MAX_SHOWN = 200


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Sampling(_Table):
    """How answers are sampled."""

    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy; needed above 0 for several samples")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that tokens are drawn from")
    max_tokens: int = Field(512, gt=0, description="longest answer, in tokens")
    seed: int = Field(0, ge=-1, lt=2**31, description="of all samples, each with its own made from it; -1 sends none")
    stop: tuple[str, ...] = Field((), max_length=4, description="texts that end an answer and are not part of it")

    @field_validator("temperature", "top_p", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Sampling:
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise ValueError(f"temperature {self.temperature:g}: expected 0, or at least {_MIN_TEMPERATURE}")
        if not all(self.stop):
            raise ValueError("stop holds an empty text, which would end every answer at once")
        return self


class Columns(_Table):
    """Names of the columns of a file's rows."""

    id: str = Field("", description='names a problem, in results and comparisons; "": the row\'s number, from 1 on')
    question: str = Field("question", min_length=1, description="text put in place of {question}")
    answer: str = Field("answer", description='reference answer; "" if the scorer needs none')
    cluster: str = Field("", description='problems with the same value share a source; "": none do')


class Scorer(_Table):
    """Who scores the answers to rows."""

    reward: str = Field("", description="exact, math, or package.module:name of a function (prompt, answer, row)")
    timeout_s: float = Field(5.0, gt=0, le=3600, description="seconds; an answer not scored by then has no score")
    processes: int = Field(2, ge=1, le=256, description="processes that score answers")
    confined: bool = Field(True, description="own function: without files, network and programs")

    @field_validator("timeout_s", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int and abs(value) < 2**31 else value


class SuiteSettings(_Table):
    """A suite of problems."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$", description="in results and reports")
    description: str = Field("", description="a sentence for the report")
    source: Literal["rows", "jsonl", "parquet", "task"] = Field(
        description="rows of a file (JSON lines, CSV, parquet, saved dataset), or a task of Weir, see [task]"
    )
    path: str = Field("", description="rows: the file or folder; relative to the suite's own folder")
    split: Split = Field("heldout", description="task: train, validation or heldout")
    limit: int = Field(0, ge=0, description="the first so many problems; 0 for all, where their number is known")
    samples: int = Field(1, ge=1, le=MAX_SAMPLES, description="answers to each problem")
    ks: tuple[int, ...] = Field((1,), min_length=1, description="the k of pass@k, and above 1 of maj@k")
    prompt_template: str = Field("{question}", description="text sent to the model; {question} is replaced")
    system: str = Field("", description="system message, in chats")
    chat: bool = Field(False, description="model folders: wrap the prompt with the tokenizer's chat template")
    format: str = Field("", description="regular expression found in every well-formed answer")
    vote: str = Field("", description="regular expression of what maj@k votes on: its last match, or group 1 of it")
    refusals: tuple[str, ...] = Field(REFUSALS, description="regular expressions found in refusals, in any case")
    columns: Columns = Field(default_factory=Columns, description="rows: names of the columns")
    score: Scorer = Field(default_factory=Scorer, description="rows: who scores")
    sampling: Sampling = Field(default_factory=Sampling, description="how answers are sampled")
    max_observation_tokens: int = Field(
        1024, gt=0, description="environments with tools, agents: longest result of a tool, in tokens; longer are cut"
    )
    task: TaskSettings | None = Field(None, description="task: the [task] table of a run, environment included")

    @property
    def is_dialog(self) -> bool:
        """Whether a sample may have several turns."""
        return self.task is not None and (self.task.turns > 1 or "environment" in self.task.model_fields_set)

    @field_validator("prompt_template")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError(f"expected {{question}} in it, which stands for the problem, got {value!r}")
        return value

    @field_validator("format", "vote")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return Pattern(value).text

    @field_validator("refusals")
    @classmethod
    def _all_compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(cls._compiles, value))

    @model_validator(mode="after")
    def _fits_together(self) -> SuiteSettings:
        given = self.model_fields_set
        if self.source == "task":
            self._check_task(given)
        else:
            self._check_file(given)
        if wrong := [k for k in self.ks if not 1 <= k <= self.samples]:
            raise ValueError(f"ks holds {wrong[0]}, expected 1 to samples ({self.samples})")
        if len(set(self.ks)) < len(self.ks):
            raise ValueError(f"ks {list(self.ks)} holds a number twice")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} at sampling.temperature 0, which gives the same answer each time; raise "
                f"the temperature or set samples to 1"
            )
        return self

    def _check_task(self, given: set[str]) -> None:
        if self.task is None:
            raise ValueError('source is "task", but there is no [task] table')
        if wrong := sorted(given & {"path", "columns", "score"}):
            raise ValueError(f'{wrong[0]} is for files; with source "task" the [task] table says it')
        stands_here = {"prompt_template"} if self.chat else {"prompt_template", "chat"}
        if wrong := sorted(self.task.model_fields_set & stands_here):
            raise ValueError(f"task.{wrong[0]} stands at the suite's top, not in its [task] table")

    def _check_file(self, given: set[str]) -> None:
        if not self.path:
            raise ValueError(f"source is {self.source!r}, but path names no file")
        if not self.score.reward:
            raise ValueError('score.reward is empty; expected "exact", "math" or a function such as "my_rewards:exact"')
        if wrong := sorted(given & {"task", "split"}):
            raise ValueError(f'{wrong[0]} is for source "task", the source is {self.source!r}')


@dataclass(frozen=True)
class Suite:
    """A suite's settings, and the folder from which its paths start."""

    settings: SuiteSettings
    folder: Path
    origin: str

    @property
    def name(self) -> str:
        return self.settings.name


def load_suite(path: str | Path) -> Suite:
    """Reads a suite's file, or one that comes with Weir by its name.

    Raises:
      SuiteError: it can't be read, is no TOML in UTF-8, or a key is unknown, missing or wrong.
    """
    file = Path(path)
    shipped = SHIPPED / f"{path}.toml"
    if not file.exists() and re.fullmatch(r"[\w-]+", str(path)) and shipped.is_file():
        file = shipped
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SuiteError(f"suite {path} does not exist; those that come with Weir are {shipped_suites()}") from None
    except UnicodeDecodeError as error:
        raise SuiteError(f"suite {path} is not TOML: it is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise SuiteError(f"suite {path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"suite {path} is not TOML: {error}") from None
    return parse_suite(tree, folder=file.parent, origin=str(path))


def parse_suite(tree: Mapping[str, Any], *, folder: Path, origin: str) -> Suite:
    """Checks a tree of plain values; `origin` names it in errors.

    Raises:
      SuiteError: a key is unknown, missing or wrong.
    """
    lists: dict[str, Any] = {key: tuple(value) for key, value in tree.items() if isinstance(value, list)}
    sampling = tree.get("sampling")
    if isinstance(sampling, Mapping) and isinstance(sampling.get("stop"), list):
        lists["sampling"] = {**sampling, "stop": tuple(sampling["stop"])}
    task = tree.get("task")
    if tree.get("chat") is True and isinstance(task, Mapping) and "environment" in task:
        lists["task"] = {"chat": True, **task}  # environments with tools and agents check it
    try:
        settings = SuiteSettings.model_validate({**tree, **lists})
    except ValidationError as error:
        raise SuiteError(f"suite {origin}: {_explained(error)}") from None
    return Suite(settings, folder, origin)


def shipped_suites() -> str:
    """Names of the suites that come with Weir, for people."""
    return ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml"))) or "none"


def _explained(error: ValidationError) -> str:
    return "; ".join(_line(problem) for problem in error.errors())


def _line(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; docs/evaluation.md lists all"
        case "missing":
            return f"{key}: it is missing"
        case "value_error":
            return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {printable(repr(problem['input'])[:_MAX_SHOWN])}"

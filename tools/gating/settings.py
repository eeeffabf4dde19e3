"""The schema of a gate: a TOML file of suites, what each metric must hold, and who judges."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from learner_jax.runtime import printable
from serving_bridge.confidence import Calibration, read_calibration
from tools.evaluation import Suite, SuiteError, load_suite
from tools.gating.errors import GateError
from tools.gating.measures import BETTER, METRICS_TEXT, known_metric

_MAX_SHOWN = 200


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CheckSettings(_Table):
    """What one metric of one suite must hold. At least one of the three limits is given."""

    suite: str = Field(min_length=1, description="name of one of the gate's suites")
    metric: str = Field(description=METRICS_TEXT)
    minimum: float | None = Field(None, description="the candidate's mean must be at least this")
    maximum: float | None = Field(None, description="the candidate's mean must be at most this")
    largest_regression: float | None = Field(
        None, ge=0, description="by how much the candidate may be worse than stable, on the same problems"
    )
    better: Literal["higher", "lower", "same", ""] = Field(
        "", description="which way is better; same: any change counts as worse. By default the metric's own"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> CheckSettings:
        if not known_metric(self.metric):
            raise ValueError(f"metric {printable(self.metric)[:80]!r}: expected {METRICS_TEXT}")
        if self.minimum is None and self.maximum is None and self.largest_regression is None:
            raise ValueError("give minimum, maximum or largest_regression: else the check passes everything")
        if self.metric == "calibration" and self.better not in ("", "lower"):
            raise ValueError(f"calibration is an error, and lower is better, got better = {self.better!r}")
        if self.metric == "judge" and self.largest_regression is not None:
            raise ValueError("a judge compares the two already: give minimum, e.g. 0.45")
        return self

    @property
    def direction(self) -> str:
        """`better`, or the metric's own."""
        return self.better or BETTER[self.metric.partition("@")[0]]


class JudgeSettings(_Table):
    """A model that compares two answers, behind OpenAI's API."""

    url: str = Field(min_length=1, description="base address, such as https://host/v1")
    model: str = Field(min_length=1, description="its name there")
    version: str = Field(min_length=1, description="kept with the result: a judge that changed is another judge")
    key_env: str = Field("", description="environment variable that holds its key")
    timeout_s: float = Field(120.0, gt=0, description="seconds that one judgement may take")
    concurrency: int = Field(8, ge=1, le=256, description="judgements in work at a time")


class GateSettings(_Table):
    """A gate."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$", description="in reports")
    suites: tuple[str, ...] = Field(min_length=1, description="suite files beside the gate's own, or shipped ones")
    check: tuple[CheckSettings, ...] = Field(min_length=1, description="[[check]] tables: all must pass")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of each check, over all rounds together")
    rounds: int = Field(3, ge=1, le=20, description="times that samples are added while a check is inconclusive")
    min_problems: int = Field(20, ge=2, description="fresh problems that a check needs")
    training: str = Field("", description="file or configuration of training prompts; by default that of --config")
    training_column: str = Field("question", description="of the file's rows")
    served: str = Field("", description="file of prompts that users have sent")
    served_column: str = Field("question", description="of the file's rows")
    ngram: int = Field(13, ge=1, description="words in a row that count as an overlap")
    latency_concurrency: int = Field(
        1, ge=1, description="answers in work at a time of suites with a check of seconds or seconds_per_token"
    )
    calibration: str = Field(
        "",
        description="file of tools.confidence fit, by which calibration and brier are measured; empty: log-probs as "
        "they are",
    )
    judge: JudgeSettings | None = Field(None, description="the [judge] table, for checks of the metric judge")

    @model_validator(mode="after")
    def _has_a_judge(self) -> GateSettings:
        if self.judge is None and any(check.metric == "judge" for check in self.check):
            raise ValueError("a check asks for the metric judge, and there is no [judge] table")
        return self


@dataclass(frozen=True)
class Gate:
    """A gate with its suites read.

    Attributes:
      sha256: of the file, as it was.
      calibration: by which confidences are measured; None: log-probs as they are.
    """

    settings: GateSettings
    suites: tuple[Suite, ...]
    folder: Path
    sha256: str
    calibration: Calibration | None = None


def load_gate(path: Path) -> Gate:
    """Reads a gate's file and the suites that it names.

    Raises:
      GateError: it can't be read, a key is wrong, a suite does not exist, or a check names a suite that it has not.
      CalibrationError: the file that `calibration` names holds none.
    """
    try:
        content = path.read_bytes()
        tree = tomllib.loads(content.decode("utf-8-sig"))
        settings = GateSettings.model_validate(tree)
    except OSError as error:
        raise GateError(f"gate {path}: {error.strerror or error}: expected a TOML file (docs/gate.md)") from None
    except ValidationError as error:
        raise GateError(f"gate {path}: {'; '.join(map(_line, error.errors()))}") from None
    except (ValueError, RecursionError) as error:
        raise GateError(f"gate {path} is not TOML: {printable(str(error))[:_MAX_SHOWN]}") from None
    try:
        suites = tuple(_suite(name, path.parent) for name in settings.suites)
    except SuiteError as error:
        raise GateError(f"gate {path}: {error}") from None
    names = [suite.name for suite in suites]
    for check in settings.check:
        if check.suite not in names:
            raise GateError(
                f"gate {path}: a check names suite {printable(check.suite)[:80]!r}, expected one of {', '.join(names)}"
            )
    if len(set(names)) < len(names):
        raise GateError(f"gate {path}: two suites have one name, of {', '.join(names)}")
    calibration = read_calibration(path.parent / settings.calibration) if settings.calibration else None
    return Gate(settings, suites, path.parent, hashlib.sha256(content).hexdigest(), calibration)


def _suite(name: str, folder: Path) -> Suite:
    beside = folder / name
    return load_suite(beside if beside.is_file() else name)


def _line(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key; docs/gate.md lists all"
    return f"{key}: {message}" if key else message

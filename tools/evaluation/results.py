"""The files of a result: `results.json` and `scored.jsonl`, of which the same answers give the same bytes.

`measured.jsonl` beside them holds what differs from asking to asking: times and log-probs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learner_jax.runtime import write_durably
from tools.evaluation.asking import Identity
from tools.evaluation.errors import ResultError
from tools.evaluation.judged import Judged
from tools.evaluation.metrics import ProblemSamples, by_turns, metrics, notes, unit_of
from tools.evaluation.problems import OpenSuite

RESULTS, SCORED, MEASURED = "results.json", "scored.jsonl", "measured.jsonl"
FORMAT = "weir-evaluation-1"
_HASH_CHARACTERS = 16


@dataclass(frozen=True)
class SuiteResult:
    """What came of a suite: its fields in results.json, and every sample with its text."""

    fields: dict[str, Any]
    samples: Sequence[Judged]


def suite_result(suite: OpenSuite, judged: Sequence[Judged], **more: Any) -> SuiteResult:
    """Adds up the samples of a suite; `more` are further fields of it."""
    by_problem: dict[str, list[Judged]] = {problem.id: [] for problem in suite.problems}
    for one in judged:
        by_problem[one.problem].append(one)
    grouped = [ProblemSamples(problem.id, problem.cluster, by_problem[problem.id]) for problem in suite.problems]
    found = metrics(suite.settings, grouped)
    fields = {
        "name": suite.name,
        "description": suite.settings.description,
        "hash": suite.hash,
        "scorer": suite.environment.version if suite.environment is not None else suite.task.version,
        "num_problems": len(suite.problems),
        "samples": suite.settings.samples,
        "ks": list(suite.settings.ks),
        "sampling": suite.settings.sampling.model_dump(mode="json"),
        "metrics": {name: {"unit": unit_of(name), **asdict(one)} for name, one in found.items()},
        **({"by_turns": by_turns(judged)} if suite.settings.is_dialog else {}),
        "notes": [*suite.notes, *notes(grouped, found)],
        **more,
        "problems": [
            _problem(problem, suite.prompt(asked)) for problem, asked in zip(grouped, suite.problems, strict=True)
        ],
    }
    return SuiteResult(fields, list(judged))


def write_results(folder: Path, model: Identity, suites: Sequence[SuiteResult]) -> dict[str, Any]:
    """Writes the files; returns what results.json holds. No times, paths of this machine or secrets are in them."""
    tree = {"format": FORMAT, "model": asdict(model), "suites": [suite.fields for suite in suites]}
    lines = [
        json.dumps({"suite": suite.fields["name"], **_sample(one)}, sort_keys=True)
        for suite in suites
        for one in suite.samples
    ]
    write_durably(folder / SCORED, "".join(f"{line}\n" for line in lines))
    measured = [
        json.dumps({"suite": suite.fields["name"], **_measurement(one)}, sort_keys=True)
        for suite in suites
        for one in suite.samples
        if one.measured is not None
    ]
    write_durably(folder / MEASURED, "".join(f"{line}\n" for line in measured))
    write_durably(folder / RESULTS, json.dumps(tree, indent=1, allow_nan=False) + "\n")
    return tree


def read_results(path: str | Path) -> dict[str, Any]:
    """What a result's folder, or its results.json, holds.

    Raises:
      ResultError: it can't be read, or is no result of this format.
    """
    given = Path(path)
    file = given / RESULTS if given.is_dir() else given
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        check = [tree["model"]["name"], *((s["name"], s["hash"], s["metrics"], s["problems"]) for s in tree["suites"])]
        found = tree["format"] if check else None
    except FileNotFoundError:
        raise ResultError(
            f"{file} does not exist; expected the folder of an evaluation that has ended (--out)"
        ) from None
    except OSError as error:
        raise ResultError(f"{file} can't be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultError(
            f"{file} is no result of an evaluation ({type(error).__name__}: {str(error)[:200]})"
        ) from None
    if found != FORMAT:
        raise ResultError(f"{file} has format {str(found)[:50]!r}, expected {FORMAT!r}")
    return tree


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The lines of scored.jsonl.

    Raises:
      ResultError: it can't be read.
    """
    return _lines(folder / SCORED)


def read_measured(folder: Path) -> list[dict[str, Any]]:
    """The lines of measured.jsonl: suite, problem, sample, num_tokens, and the fields of a `Measurement`.

    Raises:
      ResultError: it can't be read.
    """
    return _lines(folder / MEASURED)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ResultError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is damaged ({error}); give the command of the evaluation again") from None


def _problem(problem: ProblemSamples, prompt: str) -> Mapping[str, Any]:
    samples = problem.samples
    return {
        "id": problem.id,
        "cluster": problem.cluster,
        "prompt_hash": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARACTERS],
        "scores": [one.score for one in samples],
        "verdicts": [one.verdict for one in samples],
        "tokens": [one.num_tokens for one in samples],
        "characters": [len(one.answer) for one in samples],
        "finish_reasons": [one.finish_reason for one in samples],
        "turns": [one.turns for one in samples],
        "refused": [one.refused for one in samples],
        "well_formed": [one.well_formed for one in samples],
    }


def _sample(one: Judged) -> dict[str, Any]:
    fields = asdict(one)
    del fields["measured"]
    fields["messages"] = [{"role": role, "content": text} for role, text in one.messages[:-1]]
    return fields


def _measurement(one: Judged) -> dict[str, Any]:
    assert one.measured is not None
    about = {"problem": one.problem, "sample": one.sample, "num_tokens": one.num_tokens}
    return about | asdict(one.measured)

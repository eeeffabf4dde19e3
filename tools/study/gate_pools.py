"""Answers of a real model and of copies of it with noise in their weights: what the study of the gate draws from."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from learner_jax.contracts import weight_files
from serving_bridge.settings import ServingSettings
from serving_bridge.weights import Tensor, mapped_safetensors, write_safetensors
from tools.evaluation import Plan, Source, Suite, Watch, parse_suite, run_plan
from tools.study.records import StudyError

SUITE = "sums"
#: Standard deviation of the noise in each copy, as a part of that of the tensor it is added to.
NOISES = (0.1, 0.2, 0.3, 0.5)
_COMPANIONS = (".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class GateStudy:
    """What every gate of the study is held with.

    Attributes:
      problems, answers: that each model is asked once, and answers to each.
      asked: problems of one gate.
      samples: answers to each of them in the first round.
      margin: largest_regression of its check of pass@1.
      drawn_from: hash of the answers that gates draw from.
    """

    problems: int = 400
    answers: int = 24
    asked: int = 60
    samples: int = 2
    margin: float = 0.1
    confidence: float = 0.95
    seed: int = 0
    drawn_from: str = ""


@dataclass(frozen=True)
class Pool:
    """Which answers of a model were right.

    Attributes:
      passed: bool[problems, answers].
    """

    name: str
    passed: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of right answers: pass@1 of this model over all problems that there are."""
        return float(self.passed.mean())


def suite_of(study: GateStudy) -> Suite:
    """Sums as in the demo: held-out problems of its task, sampled at temperature 1."""
    tree: Mapping[str, Any] = {
        "name": SUITE,
        "source": "task",
        "limit": study.problems,
        "samples": study.answers,
        "sampling": {"temperature": 1.0, "max_tokens": 4, "seed": study.seed},
        "task": {
            "provider": "reasoning_gym",
            "name": "basic_arithmetic",
            "options": {
                "min_terms": 2,
                "max_terms": 2,
                "min_digits": 2,
                "max_digits": 2,
                "operators": ["+"],
                "allow_parentheses": False,
                "allow_negation": False,
            },
        },
    }
    return parse_suite(tree, folder=Path(), origin="of the study")


def asked_pools(
    model: Path, out: Path, study: GateStudy, *, serving: ServingSettings | None, say: Callable[[str], None]
) -> list[Pool]:
    """Asks the model and its noised copies; answers that are kept in `out` are not asked for again.

    Raises:
      WeirError: the model can't be read or served.
    """
    pools = [_asked(model, "stable", out, study, serving, say)]
    for noise in NOISES:
        name = f"noise {noise:g}"
        folder = out / "models" / name.replace(" ", "-")
        try:
            noised(model, folder, noise, seed=study.seed)
            pools.append(_asked(folder, name, out, study, serving, say))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return pools


def drawn_from(pools: Sequence[Pool]) -> str:
    """Names the answers that gates draw from: sha256 in hex."""
    digest = hashlib.sha256()
    for pool in pools:
        digest.update(f"{pool.name} {pool.passed.shape}".encode() + np.packbits(pool.passed).tobytes())
    return digest.hexdigest()


def noised(model: Path, folder: Path, noise: float, *, seed: int) -> None:
    """Writes a copy of a model folder with normal noise on every weight, in parts of its tensor's deviation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.is_file() and path.suffix in _COMPANIONS:
            shutil.copyfile(path, folder / path.name)
    rng = np.random.default_rng(seed)
    for path in weight_files(model):
        write_safetensors(folder / path.name, dict(_with_noise(path, noise, rng)), metadata={"format": "pt"})


def _with_noise(path: Path, noise: float, rng: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in mapped_safetensors(path):
        dtype = np.dtype(getattr(ml_dtypes, tensor.dtype, tensor.dtype))
        weights = tensor.words.view(dtype).astype(np.float32)
        changed = weights + noise * weights.std() * rng.standard_normal(weights.size, np.float32)
        yield name, Tensor.of(changed.astype(dtype).reshape(tensor.shape))


def _asked(
    model: Path,
    name: str,
    out: Path,
    study: GateStudy,
    serving: ServingSettings | None,
    say: Callable[[str], None],
) -> Pool:
    say(f"asking {name}")
    place = out / "answers" / name.replace(" ", "-")
    tree = run_plan(Plan([suite_of(study)], Source("folder", model), place, serving=serving), Watch(say=say))
    (suite,) = tree["suites"]
    verdicts = [problem["verdicts"] for problem in suite["problems"]]
    if unjudged := sum(verdict not in ("pass", "fail") for problem in verdicts for verdict in problem):
        raise StudyError(f"{unjudged} answers of {name} have no verdict: expected all to be judged, look at {place}")
    return Pool(name, np.array([[verdict == "pass" for verdict in problem] for problem in verdicts]))

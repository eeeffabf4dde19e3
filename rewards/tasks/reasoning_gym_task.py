"""Any dataset of the reasoning-gym library as a task: its generator makes the problems, its verifier scores them.

The library's score is the reward as it is; several datasets give partial credit. Verifiers of the library's own kind
(text comparison) run in place; datasets that bring their own run in confined processes, and those that evaluate the
answer as Python see only answers that pass a guard.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from learner_jax.runtime import import_when_used
from rewards.contracts import PASS_SCORE, Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.data import stable_hash
from rewards.sandbox import GUARDS, VerifierError, VerifierPool, printable, refusal, to_json
from rewards.settings import TaskSettings
from rewards.tasks.problems import GeneratedProblems, ListedProblems, ProblemStream

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

#: Seeds of the library stay below 2**32 with any index added: some of its datasets hand them to NumPy.
_MAX_SEED = 1 << 31
#: problems whose own answer is scored when a task starts, until one gets the full score
_MAX_TRIES = 8

#: Datasets whose problems differ between processes, found by comparing processes over 40 problems of each dataset of
#: version 0.1.25. Some iterate over sets of strings: fixing Python's hash seed helps (`composite` may contain them).
_HASH_SEED_DATASETS = frozenset(
    {
        "composite",
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
#: Others draw from unseeded generators: nothing helps.
_RANDOM_DATASETS = frozenset({"codeio", "list_functions"})


class ReasoningGymTask:
    """A reasoning-gym dataset; implements `rewards.contracts.task.Task`."""

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> None:
        self._name = settings.name
        if "seed" in settings.options:
            raise TaskError(f"task.options.seed of {self._name} is not a setting here: set run.seed")
        if self._name in _RANDOM_DATASETS:
            raise TaskError(f"reasoning_gym {self._name} can't be used: it makes different problems in every process")
        if self._name in _HASH_SEED_DATASETS and os.environ.get("PYTHONHASHSEED", "random") == "random":
            raise TaskError(
                f"reasoning_gym {self._name} makes different problems in every process unless Python's hash seed is "
                f"fixed: set PYTHONHASHSEED=0 in the environment of all processes"
            )
        options = {**settings.options, "seed": stable_hash("reasoning_gym", seed) % _MAX_SEED}
        try:
            self._options = json.dumps(options, sort_keys=True)
        except TypeError as error:
            raise TaskError(f"task.options of {self._name}: {error}; expected numbers, text, lists, tables") from None
        self._dataset = make_dataset(self._name, self._options)
        if why := refusal(self._name, type(self._dataset)):
            raise TaskError(f"reasoning_gym {self._name} can't be used: {why}")
        self._stream = self._make_stream(settings, seed)
        self._pool: VerifierPool | None = None
        if type(self._dataset).score_answer is not _library().dataset.ProceduralDataset.score_answer:
            self._pool = VerifierPool(
                "rewards.tasks.reasoning_gym_scorer",
                {"name": self._name, "options": self._options},
                num_workers=num_workers,
                deadline_s=deadline_s,
            )

    @property
    def version(self) -> str:
        return f"reasoning_gym/{self._name}@{importlib.metadata.version('reasoning_gym')}"

    def problem(self, split: Split, index: int) -> Problem:
        return self._stream.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._stream.num_distinct(split)

    def target(self, problem: Problem) -> str:
        if not problem.answer:
            raise TaskError(
                f"reasoning_gym {self._name} has no reference answers to imitate; drop [warm_start] and name a trained "
                "model in model.path"
            )
        return problem.answer

    def score(self, request: RewardRequest) -> RewardResult:
        problem, response = request.problem, request.response.strip()
        entry = {"question": problem.question, "answer": problem.answer or None, "metadata": problem.metadata}
        reasons: tuple[str, ...] = (f"expected {problem.answer!r}",)
        try:
            if self._pool is None:
                score = float(self._dataset.score_answer(response, entry))
                parts = {"library_score": score}
            else:
                key = f"{stable_hash(problem.question)}"
                verified = self._pool.call({"answer": response, "entry": to_json(entry)}, key=key)
                score, parts = verified.judged_score, verified.parts
                reasons += tuple(map(printable, verified.reasons))
        except VerifierError as error:
            return failed(f"{self.version}: {error}", error.failure)
        except Exception as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
            return failed(f"{self.version}: {type(error).__name__}: {error}")
        return scored(score, parts, reasons=reasons)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _make_stream(self, settings: TaskSettings, seed: int) -> ProblemStream:
        origin = f"reasoning_gym {self._name}"
        size = len(self._dataset)
        try:
            first = self._generate(size + 7)
        except (IndexError, KeyError):
            # A few datasets draw up `size` problems beforehand: a list, not a generator.
            listed = [self._generate(index) for index in range(size)]
            self._prove(listed[:_MAX_TRIES], more=())
            return ListedProblems(listed, seed=seed, holdout_percent=settings.holdout_percent, origin=origin)
        self._prove([first], more=range(size + 8, size + 7 + _MAX_TRIES))
        return GeneratedProblems(
            self._generate,
            num_problems=settings.num_problems,
            holdout_percent=settings.holdout_percent,
            origin=origin,
        )

    def _prove(self, problems: Sequence[Problem], *, more: Iterable[int]) -> None:
        """Checks that the scorer gives a dataset's own answer the full score, for one problem at least.

        Some answers of intermediate_integration don't: an integral that was not solved is no answer behind a guard.
        """
        scores: list[float] = []
        for problem in itertools.chain(problems, map(self._generate, more)):
            entry = {"question": problem.question, "answer": problem.answer or None, "metadata": problem.metadata}
            try:
                to_json(entry)
            except TypeError as error:
                raise TaskError(f"reasoning_gym {self._name} can't be used: a problem's data: {error}") from None
            if not problem.answer:
                return
            if (guard := GUARDS.get(self._name)) and not guard(problem.answer.strip(), entry):
                continue
            try:
                scores.append(float(self._dataset.score_answer(problem.answer.strip(), entry)))
            except Exception as error:
                why = f"its scorer raises {type(error).__name__} at its own answer: {error}"
                raise TaskError(f"reasoning_gym {self._name} can't be used: {why}") from error
            if scores[-1] >= PASS_SCORE:
                return
        raise TaskError(
            f"reasoning_gym {self._name} can't be used with these task.options: its scorer gives its own answers "
            f"{', '.join(map(str, scores)) or 'no score'}, expected 1"
        )

    def _generate(self, index: int) -> Problem:
        entry = self._dataset[index]
        return Problem(index, entry["question"], entry["answer"] or "", entry["metadata"])


def make_dataset(name: str, options: str) -> ProceduralDataset:
    """The library's dataset of that name; `options` are its configuration as JSON.

    Raises:
      TaskError: no such dataset, or the library refuses the options.
    """
    library = _library()
    datasets = library.factory.DATASETS
    if name not in datasets:
        close = difflib.get_close_matches(name, datasets, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise TaskError(f"task.name {name!r} is no reasoning_gym dataset; {hint}known: {', '.join(sorted(datasets))}")
    given: Mapping[str, Any] = json.loads(options)
    config = datasets[name][1]
    known = [field.name for field in dataclasses.fields(config) if field.name != "seed"]
    if unknown := sorted(set(given) - set(known) - {"seed"}):
        raise TaskError(
            f"reasoning_gym {name} has no option {', '.join(unknown)} (task.options); its options: {', '.join(known)}"
        )
    try:
        dataset: ProceduralDataset = library.create_dataset(name, **given)
        return dataset
    except Exception as error:  # the library checks its options with assert, ValueError, TypeError and others
        raise TaskError(f"reasoning_gym {name} refuses task.options: {type(error).__name__}: {error}") from error


def _library() -> ModuleType:
    """reasoning_gym. Its cellular automata import Matplotlib, which takes as long as all else: once they are used."""
    import_when_used("cellpylib")
    import reasoning_gym

    return reasoning_gym

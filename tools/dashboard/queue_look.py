"""Looks at a run's queue now and then: how full it is, and answers that wait or are being trained on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import Config
from learner_jax.contracts import Trajectory
from learner_jax.runtime import WeirError
from serving_bridge.queue import Progress, glance
from serving_bridge.text import Tokenizer, load_tokenizer
from tools.assembly import RunPaths, base_model_path
from tools.dashboard.answers import Answer
from tools.dashboard.texts import line, shown

#: Between two looks, however many people watch.
EVERY_S = 5.0
_MAX_GROUPS = 4
#: Tokens of one text that are decoded.
_MAX_TOKENS = 4096
_REMEMBERED = 5000


@dataclass(frozen=True)
class Seen:
    """What a look found.

    Attributes:
      progress: None where the queue could not be read.
      problem: why, in words; "" where it could.
    """

    progress: Progress | None
    answers: Sequence[Answer]
    problem: str


class QueueLook:
    """Looks read only, and gives each group once. Groups without a known tokenizer are left out."""

    def __init__(self, config: Config, paths: RunPaths, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._paths, self._clock = config, paths, clock
        self._next_s = float("-inf")
        self._known: OrderedDict[str, None] = OrderedDict()
        self._tokenizer: Tokenizer | None = None

    def look(self, step_of_version: Mapping[int, int]) -> Seen | None:
        """What is new; None before the next look is due.

        Args:
          step_of_version: train step that made a version, of those that are known.
        """
        if self._clock() < self._next_s:
            return None
        self._next_s = self._clock() + EVERY_S
        try:
            found = glance(self._paths.database, blobs=self._paths.blobs, max_groups=_MAX_GROUPS)
        except (WeirError, OSError, KeyError, TypeError, ValueError) as error:
            return Seen(None, (), line(str(error) or type(error).__name__))
        answers: list[Answer] = []
        for group in reversed(found.groups):
            if group[0].group_id not in self._known and (tokenizer := self._loaded()) is not None:
                self._remember(group[0].group_id)
                answers += (_answer(trajectory, tokenizer, step_of_version) for trajectory in group)
        return Seen(found.progress, answers, "")

    def _remember(self, group_id: str) -> None:
        self._known[group_id] = None
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _loaded(self) -> Tokenizer | None:
        """The tokenizer of the run's model, once its folder is there."""
        if self._tokenizer is None:
            folder = (
                self._paths.start_model if self._config.trains_first else base_model_path(self._config, self._paths)
            )
            try:
                self._tokenizer = load_tokenizer(folder)
            except (WeirError, OSError):
                return None
        return self._tokenizer


def _answer(trajectory: Trajectory, tokenizer: Tokenizer, step_of_version: Mapping[int, int]) -> Answer:
    sampled = np.flatnonzero(trajectory.loss_mask)
    start = int(sampled[0])
    versions = trajectory.policy_version[sampled]
    oldest = int(versions.min())
    step = step_of_version.get(oldest)
    return Answer(
        source="training",
        when="" if step is None else f"step {step}",
        step=step,
        prompt=shown(tokenizer.decode(trajectory.tokens[max(0, start - _MAX_TOKENS) : start].tolist()), 3000),
        answer=shown(tokenizer.decode(trajectory.tokens[start : start + _MAX_TOKENS].tolist())),
        expected="",
        reward=trajectory.total_reward if trajectory.is_judged else None,
        verdict=line(trajectory.verdict_reason or trajectory.verdict, 200),
        parts=dict(_parts(trajectory.reward_parts)),
        versions=[oldest, int(versions.max())],
        tokens=len(sampled),
        ended=line(trajectory.finish_reason, 20),
    )


def _parts(parts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in parts.items():
        yield name, float(value)

"""One cell of the study of learning per step: the demo's work, on answers that are all exactly so many versions old.

At step k the learner trains on answers sampled by the parameters of step max(0, k - lag). Problems, their order,
scores, batch, loss and optimizer are a run's; answers are sampled in the learner's process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.load import load_config
from configs.schema import Config
from learner_jax.batches import Batch, rl_batch, supervised_batch
from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.models import load_parameters, split_parameters
from learner_jax.training import Engine, Params, reinforcement
from rewards.contracts import Problem, RewardRequest
from tools.assembly import build_encoder, build_task
from tools.study.learning_grid import VARIANTS, LearningCell, LearningSettings
from tools.study.sampler import GroupSampler

#: metrics of the train step that a record keeps, step by step
_KEPT = ("clip_fraction", "kl", "entropy", "grad_norm")


def cell_config(base_config: Path, model: str, cell: LearningCell) -> Config:
    """The demo's configuration from the start weights in `model`, with what the variant changes."""
    overrides = ["model.create=none", "warm_start=none", f"model.path={model}", f"run.seed={cell.seed}"]
    return load_config(base_config, [*overrides, *VARIANTS[cell.variant].overrides])


class Problems:
    """The problems of one seed: prompts as token ids, and the task's own scores."""

    def __init__(self, config: Config) -> None:
        self._task = build_task(config)
        self.encoder, self.model_config = build_encoder(config, Path(config.model.path))
        self._version = self._task.version
        self._config = config

    def group(self, index: int) -> tuple[Problem, list[int]]:
        """The training problem at `index`, and its prompt."""
        problem = self._task.problem("train", index)
        prompt = self.encoder.encode(problem)
        assert prompt is not None  # the demo's questions all fit
        return problem, prompt

    def heldout(self, number: int) -> Batch:
        """The first held-out problems with their right answers, of which greedy decoding must give every token."""
        examples = []
        for index in range(number):
            problem = self._task.problem("heldout", index)
            examples.append(self.encoder.supervised(problem, self._task.target(problem)))
        return supervised_batch(examples, sequence_length=self._config.learner.sequence_length)

    def trajectory(
        self, prompt: Sequence[int], problem: Problem, answer: tuple[list[int], list[float]], *, name: str, version: int
    ) -> Trajectory:
        """An answer as a run's rollout worker records it, scored."""
        sampled, logprobs = answer
        ended = sampled[-1] in self.encoder.tokenizer.eos_ids
        finish: Any = "stop" if ended else "length"
        result = self._task.score(RewardRequest(problem, self.encoder.tokenizer.decode(sampled), finish))
        before, number = len(prompt), len(sampled)
        rewards = np.zeros(before + number, np.float32)
        rewards[-1] = result.score or 0.0
        return Trajectory(
            trajectory_id=name,
            group_id=name.rpartition("/")[0],
            group_size=self._config.rollout.group_size,
            prompt={"index": problem.index},
            tokens=np.array([*prompt, *sampled], np.int32),
            loss_mask=np.array([False] * before + [True] * number),
            behavior_logprobs=np.array([0.0] * before + logprobs, np.float32),
            policy_version=np.array([NOT_SAMPLED] * before + [version] * number, np.int32),
            turn=np.zeros(before + number, np.int32),
            rewards=rewards,
            reward_parts={},
            verdict=result.verdict,
            finish_reason=finish,
            sampling={"temperature": self._config.rollout.temperature},
            reward_version=self._version,
        )


class LearningRunner:
    """Runs cells of one variant; compiles once."""

    def __init__(self, base_config: Path, settings: LearningSettings, variant: str) -> None:
        self._base_config, self._settings, self._variant = base_config, settings, variant
        config = cell_config(base_config, settings.model, LearningCell(variant, 0))
        encoder, model_config = build_encoder(config, Path(config.model.path))
        self._loss = config.learner.loss
        self._engine = Engine(
            config.learner,
            model_config,
            objective=reinforcement(self._loss),
            temperature=config.rollout.temperature,
            devices=jax.devices()[:1],
        )
        self._sampler = GroupSampler(
            model_config, max_tokens=config.rollout.max_tokens, eos_id=encoder.tokenizer.eos_ids[0]
        )
        self._start = load_parameters(Path(config.model.path), model_config)

    def run(self, cell: LearningCell) -> dict[str, Any]:
        """Trains the cell; returns its settings, held-out accuracy by step, and reward and metrics of every step."""
        started = time.monotonic()
        config = cell_config(self._base_config, self._settings.model, cell)
        problems, engine, lag = Problems(config), self._engine, VARIANTS[self._variant].lag
        state = engine.init_state(self._start, seed=cell.seed)
        reference = engine.placed(self._start)
        heldout = problems.heldout(self._settings.num_heldout)
        accuracy = [(0, self._accuracy(state.params, heldout))]
        by_step: dict[str, list[float]] = {name: [] for name in ("age", "reward", *_KEPT)}
        waiting: deque[list[list[Trajectory]]] = deque()
        for step in range(self._settings.steps):
            policy = split_parameters(state.params)[0]
            while len(waiting) <= lag:
                waiting.append(self._sample(config, problems, policy, version=step, number=step + len(waiting)))
            groups = waiting.popleft()
            ages = {step - trajectory.oldest_version for group in groups for trajectory in group}
            if ages != {min(step, lag)}:
                raise AssertionError(f"answers at step {step} are {ages} versions old, expected {min(step, lag)}")
            batch, stats = rl_batch(
                groups,
                self._loss,
                sequence_length=config.learner.sequence_length,
                trained_version=step,
                reference=lambda rows: engine.statistics.logprobs(reference, rows.tokens, rows.sampled, rows.lengths),
            )
            state, metrics = engine.step(state, batch, current_version=step, changed_version=step)
            assert stats.reward is not None  # this task judges every answer
            own = {"age": float(max(ages)), "reward": stats.reward}
            for name, values in by_step.items():
                values.append(own[name] if name in own else float(metrics[name]))
            if (step + 1) % self._settings.evaluate_every == 0:
                accuracy.append((step + 1, self._accuracy(state.params, heldout)))
        return {
            "accuracy": accuracy,
            "by_step": by_step,
            "settings": asdict(self._settings),
            "wall_s": time.monotonic() - started,
        }

    def _accuracy(self, params: Params, heldout: Batch) -> float:
        policy = split_parameters(params)[0]
        right = self._engine.statistics.all_correct(policy, np.asarray(heldout.tokens), np.asarray(heldout.weights) > 0)
        return float(right.mean())

    def _sample(
        self, config: Config, problems: Problems, policy: Params, *, version: int, number: int
    ) -> list[list[Trajectory]]:
        """Batch `number` of the run: the same problems whatever the lag, answered by `policy`."""
        groups, size = config.learner.groups_per_step, config.rollout.group_size
        asked = [problems.group(number * groups + g) for g in range(groups)]
        answers = self._sampler.turn(
            policy,
            [prompt for _, prompt in asked for _ in range(size)],
            width=config.learner.sequence_length,
            rng=np.random.default_rng([config.run.seed, number]),
        )
        return [
            [
                problems.trajectory(
                    prompt, problem, answers[g * size + i], name=f"study/{number}/{g}/{i}", version=version
                )
                for i in range(size)
            ]
            for g, (problem, prompt) in enumerate(asked)
        ]

"""One cell of the staleness study: a training run on answers that are all exactly so many versions old.

At step k the learner trains on answers sampled by the parameters of step max(0, k - staleness), no older and no newer.
Everything but the sampler is the product's own: supervised start, trajectories, batch, loss, optimizer step.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from configs.load import load_config
from configs.schema import Config
from learner_jax.batches import rl_batch, supervised_batch
from learner_jax.checkpoints import Checkpoints, Position, restore_parameters
from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.models import load_parameters, split_parameters
from learner_jax.settings import (
    AdvantageSettings,
    KLSettings,
    LossSettings,
    OptimizerSettings,
    PolicySettings,
    ValueSettings,
)
from learner_jax.training import Engine, Params, objective, warm_start
from tools.assembly import base_model_dir, build_encoder, build_task, run_paths
from tools.study.dialogs import Dialogs, Question
from tools.study.grid import SINGLE_TURN, Cell, StudySettings
from tools.study.sampler import Sampler

_KL = KLSettings(coefficient=0.005)


_IMPALA = PolicySettings(objective="policy_gradient", importance="none")


def _vtrace(segments: Literal["token", "turn"], policy: PolicySettings = _IMPALA) -> LossSettings:
    return LossSettings(
        advantage=AdvantageSettings(estimator="vtrace", segments=segments),
        policy=policy,
        value=ValueSettings(model="shared", coefficient=0.5),
        kl=_KL,
    )


ALGORITHMS: dict[str, LossSettings] = {
    "naive PPO": LossSettings(kl=_KL),
    "decoupled PPO": LossSettings(policy=PolicySettings(objective="decoupled_ppo", importance_cap=5.0), kl=_KL),
    "truncated IS": LossSettings(policy=PolicySettings(objective="policy_gradient", importance_cap=2.0), kl=_KL),
    "CISPO": LossSettings(policy=PolicySettings(objective="cispo", clip_low=1.0, clip_high=4.0), kl=_KL),
    "V-trace by turn": _vtrace("turn"),
    "V-trace by token": _vtrace("token"),
    "V-trace by turn, PPO clip": _vtrace("turn", PolicySettings()),
}


@dataclass(frozen=True)
class _Start:
    """What all cells of one seed and task begin from."""

    config: Config
    dialogs: Dialogs
    params: Params
    width: int
    accuracy: float


def make_start(directory: Path, base_config: Path, task: str, seed: int, *, accuracy: float) -> _Start:
    """The supervised start of one seed and task, up to `accuracy`; made once and kept in `directory`."""
    overrides = {
        "run.seed": seed,
        "run.directory": directory / f"{task.replace(' ', '-')}-{seed}",
        "warm_start.target_accuracy": accuracy,
    }
    config = load_config(base_config, [f"{key}={value}" for key, value in overrides.items()])
    paths = run_paths(config)
    assert config.warm_start is not None
    base = base_model_dir(config, paths)
    encoder, model_config = build_encoder(config, base)
    turns = 1 if task == SINGLE_TURN else 2
    dialogs = Dialogs(build_task(config), encoder, turns)
    width = turns * config.learner.sequence_length
    learner = config.learner.model_copy(
        update={
            "sequence_length": width,
            "loss": LossSettings(),
            "optimizer": config.learner.optimizer.model_copy(update={"learning_rate": config.warm_start.learning_rate}),
        }
    )
    record = paths.directory / "start.json"
    if not record.exists():
        engine = Engine(learner, model_config, objective=objective.supervised, temperature=1.0, devices=_one_device())
        if turns > 1:  # from what one turn has taught, which is most of it
            initial = make_start(directory, base_config, SINGLE_TURN, seed, accuracy=accuracy).params
        else:
            initial = load_parameters(base, model_config)
        state, reached = warm_start(
            engine,
            engine.init_state(initial, seed=seed),
            config.warm_start,
            train_example=lambda index: dialogs.example("train", index),
            validation_example=lambda index: dialogs.example("validation", index),
            log=lambda *_, **__: None,
        )
        checkpoints = Checkpoints(paths.warm_start, keep=1)
        checkpoints.save(state, Position(0, -1, 0, ()))
        checkpoints.close()
        record.write_text(json.dumps({"accuracy": reached}))
    reached = json.loads(record.read_text())["accuracy"]
    return _Start(config, dialogs, restore_parameters(paths.warm_start), width, reached)


def _one_device() -> list[jax.Device]:
    """A cell has one core, and its figures should not depend on how many devices there are."""
    return jax.devices()[:1]


def _engine(start: _Start, settings: StudySettings, loss: LossSettings) -> Engine:
    rows = settings.groups * settings.group_size
    learner = start.config.learner.model_copy(
        update={
            "steps": settings.steps,
            "groups_per_step": settings.groups,
            "sequence_length": start.width,
            "row_tokens": (),
            "microbatch_rows": rows,
            "loss": loss,
            "optimizer": OptimizerSettings(
                learning_rate=settings.learning_rate, beta2=0.98, warmup_steps=settings.warmup_steps
            ),
        }
    )
    base = base_model_dir(start.config, run_paths(start.config))
    _, model_config = build_encoder(start.config, base)
    chosen = objective.reinforcement(loss)
    return Engine(learner, model_config, objective=chosen, temperature=1.0, devices=_one_device())


class CellRunner:
    """Runs cells of one task and algorithm; compiles once."""

    def __init__(self, directory: Path, base_config: Path, task: str, algorithm: str, settings: StudySettings):
        self._make_start = partial(make_start, directory, base_config, task, accuracy=settings.start_accuracy)
        self._task, self._settings = task, settings
        self._loss = ALGORITHMS[algorithm]
        self._engine: Engine | None = None
        self._sampler: Sampler | None = None

    def run(self, cell: Cell) -> dict[str, Any]:
        """Trains the cell and returns its record: settings, curve, and the mean of the last three evaluations."""
        started = time.monotonic()
        start, settings = self._make_start(seed=cell.seed), self._settings
        if self._engine is None:
            self._engine = _engine(start, settings, self._loss)
            self._sampler = Sampler(
                self._engine.model_config,
                max_tokens=start.config.rollout.max_tokens,
                eos_id=start.dialogs.encoder.tokenizer.eos_ids[0],
            )
        engine = self._engine
        state = engine.init_state(start.params, seed=cell.seed)
        reference = engine.placed(start.params)
        heldout = supervised_batch(
            [start.dialogs.example("heldout", i) for i in range(settings.num_heldout)], sequence_length=start.width
        )
        waiting: deque[list[list[Trajectory]]] = deque()
        curve: list[dict[str, float]] = []
        for step in range(settings.steps):
            version = step  # every step makes one
            policy = split_parameters(state.params)[0]
            while len(waiting) <= cell.staleness:
                waiting.append(self._sample(start, policy, cell.seed, version, number=step + len(waiting)))
            groups = waiting.popleft()
            sampled_by = {t.oldest_version for group in groups for t in group}
            if sampled_by != {max(0, step - cell.staleness)}:
                raise AssertionError(f"step {step} got versions {sampled_by} at staleness {cell.staleness}")
            batch, stats = rl_batch(
                groups,
                self._loss,
                sequence_length=start.width,
                trained_version=version,
                reference=lambda rows: engine.statistics.logprobs(reference, rows.tokens, rows.sampled, rows.lengths),
            )
            state, metrics = engine.step(state, batch, current_version=version, changed_version=version)
            if (step + 1) % settings.evaluate_every == 0:
                assert stats.reward is not None  # the dialogs' answers are always judged
                curve.append(
                    {
                        "step": step + 1,
                        "accuracy": self._accuracy(engine, state.params, heldout),
                        "reward": stats.reward,
                        **{n: float(metrics[n]) for n in ("kl", "entropy", "effective_sample_share", "clip_fraction")},
                    }
                )
        return {
            "start_accuracy": start.accuracy,
            "accuracy": float(np.mean([point["accuracy"] for point in curve[-3:]])),
            "curve": curve,
            "settings": asdict(settings),
            "wall_s": time.monotonic() - started,
        }

    @staticmethod
    def _accuracy(engine: Engine, params: Params, heldout: Any) -> float:
        policy = split_parameters(params)[0]
        return float(
            engine.statistics.all_correct(policy, np.asarray(heldout.tokens), np.asarray(heldout.weights) > 0).mean()
        )

    def _sample(self, start: _Start, policy: Params, seed: int, version: int, *, number: int) -> list[list[Trajectory]]:
        """Batch `number` of the run: the same questions whatever the staleness, answered by `policy`."""
        settings, dialogs = self._settings, start.dialogs
        assert self._sampler is not None
        key = jax.random.fold_in(jax.random.key(seed), number)
        indices = [number * settings.groups + g for g in range(settings.groups) for _ in range(settings.group_size)]
        rows = [_Row(dialogs.first("train", index)) for index in indices]
        for turn in range(dialogs.num_turns):
            answers = self._sampler.turn(
                policy, [row.tokens for row in rows], width=start.width, key=jax.random.fold_in(key, turn)
            )
            for row, index, (tokens, logprobs) in zip(rows, indices, answers, strict=True):
                row.answer(dialogs, tokens, logprobs, version)
                if turn + 1 < dialogs.num_turns:
                    row.ask(dialogs.following(dialogs.text(tokens), index, turn + 1))
        trajectories = [
            row.trajectory(f"study/{number}/{i // settings.group_size}", i % settings.group_size, settings.group_size)
            for i, row in enumerate(rows)
        ]
        size = settings.group_size
        return [trajectories[first : first + size] for first in range(0, len(trajectories), size)]


class _Row:
    """One dialog while it is being sampled."""

    def __init__(self, question: Question):
        self.tokens: list[int] = []
        self._fields: dict[str, list[Any]] = {
            "loss_mask": [],
            "behavior_logprobs": [],
            "policy_version": [],
            "turn": [],
        }
        self._turn, self._right, self._ended = -1, 0, True
        self.ask(question)

    def ask(self, question: Question) -> None:
        self._turn, self._question = self._turn + 1, question
        self._extend(question.tokens, [0.0] * len(question.tokens), NOT_SAMPLED)

    def answer(self, dialogs: Dialogs, tokens: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        self._extend(tokens, logprobs, version)
        self._ended = tokens[-1] in dialogs.encoder.tokenizer.eos_ids
        self._right += self._ended and dialogs.text(tokens) == self._question.answer

    def _extend(self, tokens: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        self.tokens += tokens
        self._fields["loss_mask"] += [version != NOT_SAMPLED] * len(tokens)
        self._fields["behavior_logprobs"] += logprobs
        self._fields["policy_version"] += [version] * len(tokens)
        self._fields["turn"] += [self._turn] * len(tokens)

    def trajectory(self, group_id: str, sample: int, group_size: int) -> Trajectory:
        rewards = np.zeros(len(self.tokens), np.float32)
        rewards[-1] = self._right / (self._turn + 1)
        return Trajectory(
            trajectory_id=f"{group_id}/{sample}",
            group_id=group_id,
            group_size=group_size,
            prompt={},
            tokens=np.array(self.tokens, np.int32),
            loss_mask=np.array(self._fields["loss_mask"], np.bool_),
            behavior_logprobs=np.array(self._fields["behavior_logprobs"], np.float32),
            policy_version=np.array(self._fields["policy_version"], np.int32),
            turn=np.array(self._fields["turn"], np.int32),
            rewards=rewards,
            reward_parts={},
            verdict="pass" if self._right else "fail",
            # An answer without an end token is wrong, not unfinished: the task's limit leaves room for every right one.
            finish_reason="stop",
            sampling={"temperature": 1.0},
            reward_version="dialogs/1",
        )

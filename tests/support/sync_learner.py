"""A learner's optimizer, weight store and checkpoints, without its loop: for tests of what is served after updates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from tokenizers import Tokenizer, models

from learner_jax.batches import Batch, rl_batch
from learner_jax.checkpoints.checkpoints import Checkpoints, Position
from learner_jax.contracts.model import read_model_config
from learner_jax.loop.publishing import Publishing
from learner_jax.models.hf_folder import load_parameters
from learner_jax.settings.learner import LearnerSettings, LossSettings, OptimizerSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.train_step import TrainState
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.store import WeightStore
from tests.support.trajectories import make_group
from tools import convert

#: of one version after the other, at most
NUM_UPDATES = 50
PROMPTS = ([5, 6, 7], [9, 8, 70, 71, 100, 3], list(range(20, 60)))


def make_model(folder: Path, family: str, *, tied: bool) -> None:
    """A random model of a family, as transformers writes it, with a tokenizer of one token per id."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **({"head_dim": 32} if family == "Qwen3" else {}),
    )
    getattr(transformers, f"{family}ForCausalLM")(config).float().save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<eos>": 1} | {chr(0x100 + index): index for index in range(2, 128)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)


class Learner:
    """A real optimizer on made-up answers, and its publishing; every step moves every element a little."""

    def __init__(self, model_dir: Path, root: Path, dtype: str) -> None:
        settings = LearnerSettings(
            steps=1,
            groups_per_step=4,
            sequence_length=8,
            microbatch_rows=8,
            optimizer=OptimizerSettings(learning_rate=3e-4),
            loss=LossSettings(),
            publish_dtype=dtype,
        )
        config = read_model_config(model_dir)
        self.engine = Engine(
            settings,
            config,
            objective=objective.reinforcement(settings.loss),
            temperature=1.0,
            devices=jax.devices()[:1],
        )
        self.state: TrainState = self.engine.init_state(load_parameters(model_dir, config), seed=0)
        self.store = WeightStore(root / "weights", "run")
        self.start_publishing()
        self.root = root
        self.checkpoints = Checkpoints(root / "checkpoints", keep=1)
        self.version = 0

    def start_publishing(self) -> None:
        """As a learner does that was started, or started again."""
        # As updates though everything changes: what is tested is the chain of them.
        settings = StoreSettings(max_changed=1.0, anchor_every=NUM_UPDATES + 10)
        self.publisher = Publisher(self.store, settings, log=lambda *_, **__: None)
        self.publishing = Publishing(
            self.engine, self.publisher, PROMPTS, keep=0, max_wait_s=60, log=lambda *_, **__: None
        )

    def step(self, seed: int) -> None:
        batch: Batch
        groups = [make_group(f"run/{i}", seed=10 * seed + i, rewards=[0.0, 1.0]) for i in range(4)]
        batch, _ = rl_batch(groups, self.engine.settings.loss, sequence_length=8, trained_version=1)
        self.state, _ = self.engine.step(self.state, batch, current_version=1)

    def publish(self) -> Any:
        self.version = self.publishing.start(self.state.params, step=0)
        self.publishing.wait()
        return self.store.manifest(self.version)

    def convert(self, model_dir: Path, out: Path) -> None:
        """By way of a checkpoint and the command that people use."""
        self.checkpoints.save(self.state, Position(self.version, self.version, 0, ()))
        self.checkpoints.wait()
        command = ["convert", "to-hf", "--checkpoint", str(self.root / "checkpoints")]
        command += ["--model", str(model_dir), "--out", str(out)]
        command += ["--dtype", self.engine.settings.publish_dtype]
        with mock.patch.object(sys, "argv", command):
            convert.main()

    def close(self) -> None:
        self.publishing.close()
        self.publisher.close()
        self.checkpoints.close()

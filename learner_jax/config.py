"""Settings of the learner, each with its range; free of JAX so that every process can read them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every settings table: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) on fp32 master weights."""

    learning_rate: float = Field(1e-6, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class LossSettings(Settings):
    """GRPO (Shao et al., arXiv 2402.03300) with a k3 KL term to the frozen reference."""

    clip_low: float = Field(0.2, gt=0, lt=1, description="lower bound of the ratio is 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="upper bound of the ratio is 1 + clip_high")
    kl_coefficient: float = Field(0.0, ge=0, description="weight of the k3 KL to the reference; 0 drops the reference")
    kl_budget: float | None = Field(None, gt=0, description="stop when the batch's mean KL (nats per token) exceeds it")
    normalize_advantage: bool = Field(True, description="divide a group's advantages by their standard deviation")
    reduction: Literal["sequence_mean", "token_mean"] = "sequence_mean"

    @model_validator(mode="after")
    def _budget_needs_a_reference(self) -> LossSettings:
        if self.kl_budget is not None and self.kl_coefficient == 0:
            raise ValueError("kl_budget needs the reference's log-probs: set kl_coefficient above 0")
        return self


class MeshSettings(Settings):
    """Sizes of the device mesh axes; -1 takes whatever devices are left."""

    data: int = Field(1, ge=-1)
    fsdp: int = Field(-1, ge=-1)
    tensor: int = Field(1, ge=-1)


class WarmStartSettings(Settings):
    """Supervised start on the task's own answers, stopped by measured skill rather than by a step count."""

    target_accuracy: float = Field(gt=0, lt=1, description="stop at this greedy accuracy on validation problems")
    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    evaluate_every: int = Field(20, gt=0)
    num_validation: int = Field(256, gt=0)


class CheckpointSettings(Settings):
    every: int = Field(20, gt=0, description="optimizer steps between checkpoints")
    keep: int = Field(2, gt=0)


class LearnerSettings(Settings):
    """The training loop."""

    steps: int = Field(gt=0, description="optimizer steps of reinforcement learning")
    groups_per_step: int = Field(gt=0)
    sequence_length: int = Field(gt=1, description="fixed row length in tokens; longer trajectories are refused")
    microbatch_rows: int = Field(gt=0, description="rows per gradient accumulation step; divides the batch")
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    publish_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = Field(False, description="recompute layer activations in the backward pass")
    logits_chunk_tokens: int = Field(0, ge=0, description="tokens per chunk of the output head; 0 does all at once")
    mismatch_rows: int = Field(64, ge=0, description="rows per batch on which sampler and trainer are compared")
    mismatch_versions: int = Field(0, ge=0, description="older versions kept in memory for that comparison")
    num_golden: int = Field(4, gt=0, description="golden prompts sent with each version")
    cpu_cores: int = Field(0, ge=0, description="cores for reinforcement learning on a CPU shared with vLLM; 0 for all")
    max_wait_s: float = Field(600, gt=0, description="give up when no group came for this long")
    mesh: MeshSettings = MeshSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loss: LossSettings = LossSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

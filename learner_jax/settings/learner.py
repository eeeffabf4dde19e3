"""Settings of the learner, each with its range; free of JAX so that every process can read them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from learner_jax.contracts import Settings
from learner_jax.settings.advantage import AdvantageSettings
from learner_jax.settings.doors import OBJECTIVES, ObjectiveName
from learner_jax.settings.hosts import HostsSettings, MeshSettings
from learner_jax.settings.online import OnlineSettings


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) on fp32 master weights."""

    learning_rate: float = Field(
        1e-6, ge=1e-10, le=1, description="step size of AdamW; below 1e-10, updates get lost in fp32's rounding"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises to learning_rate")
    beta1: float = Field(0.9, ge=0, le=1 - 1e-6, description="decay of the first moment per step")
    beta2: float = Field(
        0.999,
        ge=0,
        le=1 - 1e-6,
        description="decay of the second moment per step; more would be 1 in fp32, or nearly so",
    )
    eps: float = Field(1e-8, ge=1e-18, le=1, description="added to the root of the second moment")
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled weight decay; each step takes learning_rate x weight_decay off a weight"
    )
    max_grad_norm: float = Field(1.0, ge=1e-6, allow_inf_nan=True, description="bound of the global norm; inf for none")
    moments: Literal["float32", "bfloat16", "factored"] = Field(
        "float32",
        description="8 bytes per parameter; 6 (the first in bf16); 2 (and the second by row and column)",
    )

    @model_validator(mode="after")
    def _decay_shrinks(self) -> OptimizerSettings:
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate x weight_decay is {self.learning_rate * self.weight_decay:g}, expected below 1: each "
                f"step would take away more than the whole of every weight; lower weight_decay"
            )
        return self


class PolicySettings(Settings):
    """The policy's objective; `learner_jax.losses.policy` cites each paper."""

    objective: ObjectiveName = Field(
        "ppo", description=f'one of {OBJECTIVES}; or a function of your own, of the tokens of a row: "module:name"'
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="lower bound of the ratio is 1 - clip_low")
    clip_high: float = Field(
        0.2, gt=0, allow_inf_nan=True, description="upper bound of the ratio is 1 + clip_high; inf for none"
    )
    dual_clip: float | None = Field(
        None, gt=1, description="bound of ratio x advantage where the advantage is negative"
    )
    importance: Literal["none", "truncated"] = Field(
        "truncated", description="decoupled_ppo and policy_gradient: weight by proximal / behaviour ratio"
    )
    importance_cap: float = Field(2.0, gt=0, allow_inf_nan=True, description="upper bound of that weight; inf for none")

    @property
    def leaves_ratio_to_advantages(self) -> bool:
        """True of IMPALA's policy gradient alone: every other objective applies the importance ratio itself."""
        return self.objective == "policy_gradient" and self.importance == "none"


class MismatchSettings(Settings):
    """Corrections for a sampler that computes other log-probs than the trainer at the same version."""

    truncation: float | None = Field(None, ge=1, description="weight tokens by their ratio, at most this")
    band: tuple[float, float] | None = Field(None, description="mask tokens whose ratio is outside")
    sequence_band: tuple[float, float] | None = Field(None, description="mask answers whose geometric mean is outside")
    veto: float | None = Field(None, gt=0, lt=1, description="mask answers in which any token's ratio is below")
    lagging: bool = Field(
        False, description="also correct tokens of older versions: recomputes them with learner.mismatch_versions"
    )

    @property
    def active(self) -> bool:
        return any(x is not None for x in (self.truncation, self.band, self.sequence_band, self.veto))

    @model_validator(mode="after")
    def _bands_hold_one(self) -> MismatchSettings:
        for name in ("band", "sequence_band"):
            band = getattr(self, name)
            if band is not None and not 0 <= band[0] < 1 < band[1]:
                raise ValueError(f"{name} is {list(band)}, expected [low, high] with 0 <= low < 1 < high")
        if self.lagging and not self.active:
            raise ValueError("lagging recomputes log-probs for corrections, but none is set: set truncation or a band")
        return self


class KLSettings(Settings):
    """KL to the frozen reference; `learner_jax.losses.kl` says what gradient each combination has."""

    coefficient: float = Field(0.0, ge=0, description="weight of the KL; 0 drops the reference")
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="estimator of the KL per token (Schulman's k1, k2, k3)"
    )
    use: Literal["loss", "reward"] = Field(
        "loss", description="a term of the loss, or a penalty on each token's reward"
    )
    importance_weighted: bool = Field(
        False, description="loss: multiply by current / behaviour ratio, whose gradient makes k1 and k3 unbiased"
    )
    target: float | None = Field(None, gt=0, description="nats per token that an adaptive coefficient steers to")
    horizon: float = Field(50, gt=0, description="steps in which the adaptive coefficient can change by about e^0.2")
    budget: float | None = Field(None, gt=0, description="stop when the batch's mean KL (nats per token) exceeds it")
    reference: str = Field("", description="checkpoint or Hugging Face folder of the reference; empty: the start model")
    reset_every: int = Field(0, ge=0, description="steps after which the reference becomes the current policy; 0 never")

    @model_validator(mode="after")
    def _combinations(self) -> KLSettings:
        if self.coefficient == 0:
            for name in ("target", "budget", "reference", "reset_every"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs the reference's log-probs: set kl.coefficient above 0")
        if self.estimator == "k1" and self.use == "loss" and not self.importance_weighted:
            raise ValueError(
                "k1 as a loss term has no effect: its gradient is the score function, whose expectation under the "
                'policy is zero. Use it as a reward (use = "reward"), take k2 or k3, or set importance_weighted'
            )
        if self.use == "reward" and self.importance_weighted:
            raise ValueError(
                'importance_weighted is for use = "loss": a reward is weighted by the policy objective already'
            )
        return self


class ValueSettings(Settings):
    """The value function that gae and vtrace need."""

    model: Literal["none", "shared", "separate"] = Field(
        "none", description="a head on the policy's trunk, or a critic with a trunk of its own"
    )
    coefficient: float = Field(0.5, gt=0, description="weight of the value loss")
    clip: float | None = Field(None, gt=0, description="bound of a value's change per step (PPO2); needs old values")


class GroupSettings(Settings):
    """Which answers and groups are learned from."""

    zero_variance: Literal["keep", "drop"] = Field("keep", description="groups whose rewards are all the same")
    overlong: Literal["keep", "mask", "penalize"] = Field("keep", description="answers that reached their length limit")
    overlong_buffer_tokens: int = Field(0, ge=0, description="penalize: length before the limit where it begins")
    overlong_penalty: float = Field(1.0, gt=0, description="penalize: reward taken away at the limit")
    aborted: Literal["mask", "drop_group"] = Field("mask", description="answers whose generation was broken off")


class LossSettings(Settings):
    """One loss, composed: advantages, policy objective, corrections, KL, value, entropy, reduction.

    The defaults are GRPO (Shao et al., arXiv 2402.03300) without KL.
    """

    advantage: AdvantageSettings = AdvantageSettings()
    policy: PolicySettings = PolicySettings()
    mismatch: MismatchSettings = MismatchSettings()
    kl: KLSettings = KLSettings()
    value: ValueSettings = ValueSettings()
    groups: GroupSettings = GroupSettings()
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    reduction: Literal["sequence_mean", "token_mean", "constant"] = Field(
        "sequence_mean",
        description="mean of the answers' means; mean over tokens; or sum per answer divided by constant_tokens",
    )
    constant_tokens: int | None = Field(None, gt=0, description="constant: denominator per answer (Dr. GRPO)")
    effective_sample_exponent: float = Field(
        0.0, ge=0, le=1, description="scale the step by (effective sample size / tokens) to this power"
    )

    @property
    def needs_values_ahead(self) -> bool:
        """Whether values of the whole batch are needed before its first gradient."""
        return self.advantage.whiten or self.value.clip is not None

    @model_validator(mode="after")
    def _fits_together(self) -> LossSettings:
        estimator, objective = self.advantage.estimator, self.policy.objective
        if self.advantage.uses_values and self.value.model == "none":
            raise ValueError(f'advantage.estimator {estimator} needs a value function: set value.model = "shared"')
        if not self.advantage.uses_values and self.value.model != "none":
            raise ValueError(
                f"value.model is {self.value.model}, but advantage.estimator {estimator} uses no values: remove it or "
                f"set the estimator to gae or vtrace"
            )
        if self.advantage.whiten and estimator != "gae":
            raise ValueError(f"advantage.whiten is for gae; {estimator} has a normalisation of its own")
        if self.groups.zero_variance == "drop" and estimator in ("gae", "vtrace", "reinforce_pp"):
            raise ValueError(
                f'groups.zero_variance = "drop" is for estimators that compare answers within a group: {estimator} '
                f"learns from groups whose rewards are all the same, too"
            )
        if self.policy.dual_clip is not None and objective not in ("ppo", "decoupled_ppo"):
            raise ValueError(f"policy.dual_clip is for ppo and decoupled_ppo, not {objective}")
        if objective == "gspo" and self.advantage.segments == "turn":
            raise ValueError("gspo has one ratio for a whole answer; it does not go with advantage.segments = turn")
        if (self.reduction == "constant") != (self.constant_tokens is not None):
            raise ValueError('set constant_tokens (tokens per answer) together with reduction = "constant", or neither')
        return self


class WarmStartSettings(Settings):
    """Supervised start on the task's own answers, stopped by measured skill rather than by a step count."""

    target_accuracy: float = Field(gt=0, lt=1, description="stop at this greedy accuracy on validation problems")
    max_steps: int = Field(gt=0, description="give up when the accuracy is not reached in so many steps")
    batch_size: int = Field(gt=0, description="answers per step")
    learning_rate: float = Field(ge=1e-10, le=1, description="step size of AdamW in the supervised start")
    evaluate_every: int = Field(20, gt=0, description="steps between two measurements of the accuracy")
    num_validation: int = Field(256, gt=0, description="validation problems per measurement")


class CheckpointSettings(Settings):
    """When the learner's state is saved, and how many states are kept."""

    every: int = Field(20, gt=0, description="optimizer steps between checkpoints")
    keep: int = Field(2, gt=0, description="checkpoints kept; older ones are deleted")


class LearnerSettings(Settings):
    """The training loop."""

    steps: int = Field(gt=0, description="optimizer steps of reinforcement learning")
    groups_per_step: int = Field(gt=0, description="groups (prompts) in the batch of a step")
    sequence_length: int = Field(gt=1, description="longest trajectory in tokens; longer ones are refused")
    row_tokens: tuple[Annotated[int, Field(gt=1)], ...] = Field(
        (), description="the few row lengths that sequences are packed into; empty: sequence_length alone"
    )
    microbatch_rows: int = Field(gt=0, description="packed rows per gradient accumulation step, at most")
    share_prompts: Literal["auto", "never"] = Field(
        "auto", description="compute a group's prompt once per row, where the attention kernel can and it costs less"
    )
    minibatches: int = Field(1, gt=0, description="optimizer updates per batch; more than 1 cost a forward pass more")
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of matrix products in the learner; master weights are float32"
    )
    publish_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of published weights; the same as serving.dtype"
    )
    attention: Literal["auto", "xla", "cudnn", "splash"] = Field(
        "auto", description="attention kernel; auto takes the platform's"
    )
    remat: Literal["none", "matmuls", "full"] = Field(
        "matmuls", description="of each layer, keep all activations, those that come out of matmuls, or only its input"
    )
    logits_chunk_tokens: int = Field(512, ge=0, description="tokens per chunk of the output head; 0 does all at once")
    mismatch_rows: int = Field(64, ge=0, description="rows per batch on which sampler and trainer are compared")
    mismatch_versions: int = Field(0, ge=0, description="older versions kept in memory for that comparison")
    num_golden: int = Field(4, gt=0, description="golden prompts sent with each version")
    cpu_cores: int = Field(0, ge=0, description="cores for reinforcement learning on a CPU shared with vLLM; 0 for all")
    compilation_cache: bool = Field(
        True,
        description="keep compiled programs in the user's cache folder, for later starts on the same kind of machine; "
        "with several hosts only where JAX_COMPILATION_CACHE_DIR names a folder",
    )
    max_wait_s: float = Field(600, gt=0, description="give up when no group came for so many seconds")
    peak_tflops: float = Field(
        0.0, ge=0, description="of one device, for the utilisation in the log; 0 measures a large matmul at the start"
    )
    hosts: HostsSettings = HostsSettings()
    mesh: MeshSettings = MeshSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loss: LossSettings = LossSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    online: OnlineSettings = OnlineSettings()

    @property
    def online_groups(self) -> int:
        """Online groups that a step takes at most."""
        return math.floor(self.online.share * self.groups_per_step + 1e-9)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """The lengths of packed rows."""
        return self.row_tokens or (self.sequence_length,)

    @model_validator(mode="after")
    def _rows_hold_sequences(self) -> LearnerSettings:
        if max(self.row_lengths) < self.sequence_length:
            raise ValueError(
                f"row_tokens is {list(self.row_tokens)}, but sequence_length is {self.sequence_length}: the longest "
                f"row must hold the longest sequence; raise one of row_tokens to at least that"
            )
        return self

    @model_validator(mode="after")
    def _online_data_is_corrected(self) -> LearnerSettings:
        if not self.online.share:
            return self
        if not self.online_groups:
            raise ValueError(
                f"online.share is {self.online.share:g} of groups_per_step {self.groups_per_step}, which is no whole "
                f"group: raise one of them"
            )
        policy, estimator = self.loss.policy, self.loss.advantage.estimator
        truncated = policy.objective in ("decoupled_ppo", "policy_gradient") and policy.importance == "truncated"
        if estimator != "vtrace" and not truncated:
            raise ValueError(
                f"online.share is {self.online.share:g}, and online answers lag by many versions: expected a "
                f'correction, loss.advantage.estimator = "vtrace", or loss.policy.objective = "decoupled_ppo" or '
                f'"policy_gradient" with importance = "truncated"; got {estimator} and {policy.objective}'
            )
        return self

    @model_validator(mode="after")
    def _rows_divide(self) -> LearnerSettings:
        data, fsdp, _ = self.mesh.sizes
        pieces = abs(data) * abs(fsdp)  # of which one size may not be known here
        if self.microbatch_rows % pieces:
            raise ValueError(
                f"microbatch_rows is {self.microbatch_rows} and does not divide over mesh.data x mesh.fsdp = {pieces}: "
                f"make it a multiple of that"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_hosts(self) -> LearnerSettings:
        count = self.hosts.count
        if count == 1:
            return self
        if self.microbatch_rows % count:
            raise ValueError(
                f"microbatch_rows is {self.microbatch_rows}, the rows of all hosts together, and does not divide by "
                f"hosts.count {count}: make it a multiple of that"
            )
        if self.groups_per_step // self.minibatches < count:
            raise ValueError(
                f"groups_per_step / minibatches is {self.groups_per_step // self.minibatches}, fewer than hosts.count "
                f"{count}: every host needs a group of every update; raise groups_per_step"
            )
        if self.loss.advantage.whiten:
            raise ValueError(
                f"loss.advantage.whiten normalises over the whole batch, and each of {count} hosts holds a part only: "
                f"turn it off, or train with hosts.count = 1"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_loss(self) -> LearnerSettings:
        groups = self.loss.groups
        if groups.overlong != "penalize" and groups.overlong_buffer_tokens:
            raise ValueError(
                f'loss.groups.overlong_buffer_tokens is for overlong = "penalize", not "{groups.overlong}": set that, '
                f"or remove the buffer"
            )
        if self.groups_per_step % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches} and does not divide groups_per_step {self.groups_per_step}: an "
                f"update takes whole groups"
            )
        if self.loss.mismatch.lagging and not self.mismatch_versions:
            raise ValueError(
                "loss.mismatch.lagging recomputes log-probs with older weights: set mismatch_versions to "
                "rollout.max_staleness, the number of them to keep"
            )
        return self

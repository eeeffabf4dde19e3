"""The one schema of a run: the packages' own settings, composed."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from configs.launch import LaunchSettings
from learner_jax.contracts import Settings
from learner_jax.settings import LearnerSettings, SupervisedSettings, WarmStartSettings
from rewards.settings import TaskSettings
from serving_bridge.settings import (
    EvaluationSettings,
    FallbackSettings,
    FeedbackSettings,
    GatewaySettings,
    RegistrySettings,
    RolloutSettings,
    SafetySettings,
    ServingSettings,
    SessionsSettings,
    StoreSettings,
    TelemetrySettings,
)


class RunSettings(Settings):
    """The run's name, place and seed."""

    name: str = Field(
        max_length=100,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$",
        description="name of the run and of its database schema; by default its results are in runs/NAME",
    )
    directory: str = Field("", description="run directory; runs/<name> if empty")
    loggers: tuple[str, ...] = Field(
        (),
        description="also get every event: tensorboard, wandb, mlflow, trackio, or classes of your own as "
        '"package.module:name"',
    )
    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="seed of problems, weights and sampling; JAX's generators take 32 bits of it"
    )


class CreateModelSettings(Settings):
    """Shape of a small Qwen3 model that a run makes for itself, with a tokenizer trained on its task."""

    hidden_size: int = Field(128, gt=0, description="width of the residual stream")
    intermediate_size: int = Field(384, gt=0, description="width inside each feed-forward layer")
    num_layers: int = Field(4, gt=0, description="decoder layers")
    num_heads: int = Field(4, gt=0, description="query heads of each attention layer")
    num_kv_heads: int = Field(2, gt=0, description="key and value heads; divides num_heads")
    head_dim: int = Field(32, gt=0, description="dimensions of a head; even")
    vocab_size: int = Field(128, gt=0, description="upper bound for the tokenizer that is trained")
    rope_theta: float = Field(
        10_000.0,
        gt=1,
        description="base of the rotary positions; small for short texts, so that neighbours are told apart",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, expected a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}, expected an even number: positions turn pairs of dimensions"
            )
        return self


class ModelSettings(Settings):
    """The model that the run begins from: give exactly one of the two."""

    path: str = Field(
        "",
        description="Hugging Face model folder, or organization/name@revision of the hub, whose commit the run keeps; "
        "empty if the run creates its model",
    )
    create: CreateModelSettings | None = None
    family: str = Field(
        "",
        description='family of the model: an entry point or "package.module:NAME"; empty: one that Weir has',
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.path) == (self.create is not None):
            raise ValueError("give exactly one of model.path (a Hugging Face folder) and [model.create]")
        if self.create is not None and self.family:
            raise ValueError("model.family is of the model in model.path: a model that the run creates is a Qwen3")
        return self


class Config(Settings):
    """Everything that a run is made of. Unknown keys, wrong types and values out of range are errors."""

    run: RunSettings
    model: ModelSettings
    task: TaskSettings
    warm_start: WarmStartSettings | None = None
    supervised: SupervisedSettings | None = None
    learner: LearnerSettings
    rollout: RolloutSettings
    serving: ServingSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    store: StoreSettings = StoreSettings()
    gateway: GatewaySettings = GatewaySettings()
    fallback: FallbackSettings = FallbackSettings()
    registry: RegistrySettings = RegistrySettings()
    launch: LaunchSettings = LaunchSettings()
    safety: SafetySettings = SafetySettings()
    sessions: SessionsSettings = SessionsSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        needed = self.rollout.episode_tokens(self.task.turns)
        if needed > self.learner.sequence_length:
            raise ValueError(
                f"learner.sequence_length is {self.learner.sequence_length}, but an episode can take {needed} tokens "
                f"(rollout.max_prompt_tokens + rollout.max_tokens for each of task.turns, or "
                f"rollout.max_episode_tokens): raise the first or lower the others"
            )
        answer = max(self.rollout.max_tokens, self.evaluation.max_tokens or 0)
        longest = max(needed, self.rollout.max_prompt_tokens + answer)
        if longest > self.serving.max_model_len:
            raise ValueError(
                f"serving.max_model_len is {self.serving.max_model_len}, but prompt and answer can take "
                f"{longest} tokens: vLLM would cut answers silently; raise it"
            )
        if self.learner.publish_dtype != self.serving.dtype:
            raise ValueError(
                f"learner.publish_dtype is {self.learner.publish_dtype} and serving.dtype {self.serving.dtype}: "
                f"a replica takes weights in its own dtype only; set both to the same"
            )
        self._waits_long_enough()
        self._has_a_registry()
        self._can_learn()
        self._hosts_are_there()
        if self.model.create and not self.trains_first:
            raise ValueError("a model that the run creates knows nothing: add a [warm_start] table")
        self._trains_first_in_one_way()
        return self

    @property
    def trains_first(self) -> bool:
        """Whether a supervised stage makes the model that reinforcement learning starts from."""
        return self.warm_start is not None or self.supervised is not None

    def _trains_first_in_one_way(self) -> None:
        """Raises `ValueError` if both supervised stages are set, or one does not fit the hosts or the rendering."""
        if self.warm_start is not None and self.supervised is not None:
            raise ValueError("[warm_start] and [supervised] are both set: each makes the start model; remove one")
        count = self.learner.hosts.count
        if self.supervised is not None and self.supervised.batch_size % count:
            raise ValueError(
                f"supervised.batch_size is {self.supervised.batch_size}, expected a multiple of learner.hosts.count "
                f"({count}): each host computes as many examples of a step"
            )
        if self.supervised is not None and not self.task.chat:
            for name in ("messages_column", "system_column"):
                if getattr(self.supervised, name):
                    raise ValueError(f"supervised.{name} needs task.chat = true: plain text has no messages")

    def _hosts_are_there(self) -> None:
        """Raises `ValueError` if [launch] has other hosts for the learner, or fewer, than its roles need."""
        role, count = self.launch.learner, self.learner.hosts.count
        if role is not None and role.hosts not in (None, count):
            raise ValueError(
                f"launch.learner.hosts is {role.hosts} and learner.hosts.count {count}: remove the first, or set both "
                f"to the same"
            )
        fleet, each = self.launch.fleet, self.serving.hosts_per_replica
        if fleet is not None and fleet.hosts % each:
            raise ValueError(
                f"launch.fleet.hosts is {fleet.hosts} and serving.hosts_per_replica {each}: expected a multiple, since "
                f"every fleet has one replica of {each} hosts"
            )
        for name, other in self.launch.roles().items():
            if other.beside == "learner" and other.hosts > count:
                raise ValueError(
                    f"launch.{name}.hosts is {other.hosts}, but the learner beside which it runs has "
                    f"learner.hosts.count {count}"
                )

    def _has_a_registry(self) -> None:
        """Raises `ValueError` if aliases are to be followed, and nothing says of which registry."""
        for name, follow in (("serving", self.serving.follow), ("gateway", self.gateway.follow)):
            if follow == "aliases" and not self.registry.path:
                raise ValueError(
                    f'{name}.follow is "aliases", and registry.path is empty: set it to the folder of the registry '
                    f'(tools.registry), or {name}.follow to "newest"'
                )

    def _waits_long_enough(self) -> None:
        """Raises `ValueError` if a process would give up while groups wait for rewards, as they may."""
        window_s = self.task.longest_window_s()
        for name, limit_s in (("learner", self.learner.max_wait_s), ("rollout", self.rollout.max_wait_s)):
            if limit_s <= window_s:
                raise ValueError(
                    f"{name}.max_wait_s is {limit_s:g}, but answers may wait {window_s:g} s for their rewards "
                    f"(task.delayed.window_s): raise the first above the second, or lower the second"
                )

    def _can_learn(self) -> None:
        """Raises `ValueError` if every advantage would be zero, or corrections and penalties would miss their mark."""
        loss, rollout = self.learner.loss, self.rollout
        if loss.advantage.has_group_baseline and rollout.group_size < 2:
            raise ValueError(
                f"learner.loss.advantage.estimator {loss.advantage.estimator} compares an answer with the others of "
                f"its group, and there are none: set rollout.group_size to 2 or more, or the estimator to gae, "
                f"vtrace or reinforce_pp"
            )
        if loss.advantage.estimator == "reinforce_pp" and rollout.group_size * self.learner.groups_per_step < 2:
            raise ValueError(
                "learner.loss.advantage.estimator reinforce_pp compares the answers of a batch, and there is one: set "
                "learner.groups_per_step or rollout.group_size to 2 or more"
            )
        if loss.mismatch.lagging and self.learner.mismatch_versions < rollout.max_staleness:
            raise ValueError(
                f"learner.loss.mismatch.lagging corrects tokens of older versions, but learner.mismatch_versions is "
                f"{self.learner.mismatch_versions} and rollout.max_staleness {rollout.max_staleness}: set the first to "
                f"at least the second"
            )
        if loss.groups.overlong_buffer_tokens > rollout.max_tokens:
            raise ValueError(
                f"learner.loss.groups.overlong_buffer_tokens is {loss.groups.overlong_buffer_tokens}, but "
                f"rollout.max_tokens {rollout.max_tokens}: every answer would be penalised; lower it"
            )

"""Settings of the serving side: replicas, rollouts, queue and weight store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from learner_jax.contracts import Settings
from serving_bridge.database import secret_in_url
from serving_bridge.settings.engine_args import VLLM_MODULE, check_engine_args
from serving_bridge.storage import is_url, unshared, url_problem

#: What vLLM samples at; it takes less for this much, without a word, and refuses more than the other.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.01, 2.0
#: PostgreSQL takes its timeouts as milliseconds in an int32.
_MAX_DATABASE_TIMEOUT_S = 2e6


class ServingSettings(Settings):
    """vLLM replicas that this process starts and keeps on the weights that they are to serve."""

    replicas: int = Field(1, ge=1, description="vLLM servers that this fleet runs")
    follow: Literal["newest", "aliases"] = Field(
        "newest",
        description="serve the newest version of the run, or what the aliases stable and canary of registry.path name",
    )
    kept_versions: int = Field(
        0,
        ge=0,
        le=16,
        description="with follow = aliases: versions that a replica keeps in host memory beside the served one; going "
        "back to one reads nothing",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to bind, loopback or private: tokens and prompts cross the network in clear",
    )
    port: int = Field(0, ge=0, le=65535, description="first port; 0 picks free ones")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the served weights; the same as learner.publish_dtype"
    )
    max_model_len: int = Field(gt=1, description="longest prompt and answer together, in tokens")
    max_num_seqs: int = Field(256, gt=0, description="most answers that a replica samples at the same time")
    training_slowdown: float = Field(
        0.15,
        ge=0,
        le=1000,
        description="most that a user's token may take longer because of training on the same replica, as a share; "
        "beyond it training waits",
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU's memory that a replica takes")
    cpu_kv_cache_gib: int = Field(
        1,
        gt=0,
        description="KV cache on the CPU platform, GiB; less where that is more than four times what `max_num_seqs` "
        "sequences of `max_model_len` fill",
    )
    threads: int = Field(1, gt=0, description="OpenMP threads of a replica on the CPU platform")
    tensor_parallel_size: int = Field(1, gt=0, description="GPUs that each layer of one replica is split over")
    pipeline_parallel_size: int = Field(1, gt=0, description="parts of the layers of one replica, each on its own GPUs")
    hosts_per_replica: int = Field(
        1, ge=1, le=1024, description="hosts that one replica is spread over, each with an equal part of its GPUs"
    )
    enforce_eager: bool = Field(True, description="run vLLM without CUDA graphs; starts sooner, samples slower")
    server_module: str = Field(
        VLLM_MODULE,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Python module of the server; another one must take vLLM's command line and answer as it does",
    )
    engine_args: dict[str, Any] = Field(
        {}, description="any more of vLLM's options, by name; lists are several values, tables JSON, paths from /"
    )
    environment: tuple[str, ...] = Field(
        (), description="names of further environment variables that the run's processes hand on to their children"
    )
    keys: str = Field(
        "",
        description="folder of the keys that the replicas' tokens come from, for this user only; empty for one beside "
        "the replicas' rows in the weight store",
    )
    start_timeout_s: float = Field(300, gt=0, description="seconds that a replica gets to start")
    update_timeout_s: float = Field(120, gt=0, le=43_200, description="seconds for each step of a weight round")
    updates_at_once: int = Field(
        0,
        ge=0,
        description="replicas in a weight round at the same time: 1 goes replica by replica, 0 takes all at once",
    )
    drain_timeout_s: float = Field(10, gt=0, description="seconds that answers in flight get on a stop")
    max_restarts: int = Field(3, ge=0, description="restarts of a replica within restart_window_s; then it stays down")
    restart_window_s: float = Field(3600, gt=0, description="seconds after which a restart no longer counts")
    health_interval_s: float = Field(1, gt=0, description="seconds between two health checks of a replica")
    suspect_after: int = Field(3, ge=1, description="failed health checks in a row that make a replica suspect")
    hang_s: float = Field(
        60, gt=0, description="restart a replica that shows no sign of life, or samples nothing, for so many seconds"
    )
    min_healthy: int = Field(1, ge=0, description="replicas that must serve; restarts and scaling keep to it")
    min_healthy_s: float = Field(600, gt=0, description="give up when fewer serve for so many seconds")
    probe_tolerance: float | None = Field(
        None, gt=0, description="largest golden-prompt log-prob difference accepted, nats; by the dtype if unset"
    )

    @model_validator(mode="after")
    def _safe_arguments(self) -> ServingSettings:
        check_engine_args(self.engine_args)
        return self

    @model_validator(mode="after")
    def _enough_replicas(self) -> ServingSettings:
        if self.replicas < self.min_healthy:
            raise ValueError(f"replicas is {self.replicas}, expected at least min_healthy ({self.min_healthy})")
        return self

    @model_validator(mode="after")
    def _hosts_share_alike(self) -> ServingSettings:
        size, hosts = self.tensor_parallel_size * self.pipeline_parallel_size, self.hosts_per_replica
        if size % hosts:
            raise ValueError(
                f"hosts_per_replica is {hosts}, but tensor_parallel_size x pipeline_parallel_size is {size}: expected "
                f"a multiple, so that each host has as many GPUs of the replica"
            )
        if hosts > 1 and self.replicas > 1:
            raise ValueError(
                f"hosts_per_replica is {hosts} and replicas {self.replicas}: a fleet has one replica of several hosts; "
                f"start more fleets (launch.fleet.hosts)"
            )
        return self

    @model_validator(mode="after")
    def _ports_exist(self) -> ServingSettings:
        last = self.port + self.replicas - 1
        if self.port and last > 65535:
            raise ValueError(
                f"port is {self.port} and replicas {self.replicas}: the last one would listen on {last}, and ports end "
                f"at 65535; lower port, or set it to 0"
            )
        return self


class RolloutSettings(Settings):
    """How answers are sampled."""

    group_size: int = Field(8, ge=1, le=16384, description="answers per prompt; vLLM makes no more in one request")
    max_staleness: int = Field(2, ge=0, description="versions a group may lag when trained on; 0 is synchronous")
    temperature: float = Field(
        1.0,
        ge=_MIN_TEMPERATURE,
        le=_MAX_TEMPERATURE,
        description="vLLM samples at 0.01 where less is asked for, so that log-probs would not be those of the trainer",
    )
    max_prompt_tokens: int = Field(gt=0, description="longest prompt, in tokens; longer ones are refused")
    max_tokens: int = Field(gt=0, description="longest answer, in tokens")
    concurrent_groups: int = Field(
        64, gt=0, description="groups that a worker plays at the same time, beside those that only wait for verdicts"
    )
    max_episode_tokens: int | None = Field(
        None, gt=1, description="prompt, answers and observations; room for task.turns of the longest if unset"
    )
    min_concurrency: int = Field(32, ge=1, description="answers in flight that a worker may always have on a replica")
    max_concurrency: int = Field(1024, ge=1, description="most answers in flight that a worker has on a replica")
    segment_tokens: int = Field(
        0,
        ge=0,
        description="sample longer answers in pieces of so many tokens, each from any replica; 0 for whole ones",
    )
    spare_samples: int = Field(0, ge=0, description="more answers per group, in place of late and broken ones")
    episode_timeout_s: float = Field(
        3600, gt=0, description="seconds; an answer, or dialog, that takes longer is broken off"
    )
    request_timeout_s: float = Field(
        300,
        gt=0,
        description="seconds that one request to a replica may take; up to ten times that while it is held for users",
    )
    max_attempts: int = Field(5, gt=0, description="tries in a row of a request that a replica fails or aborts")
    failures_to_avoid: int = Field(3, ge=1, description="failures in a row after which a replica is left alone a while")
    reward_threads: int = Field(8, ge=1, description="answers that are scored at the same time")
    reward_timeout_s: float = Field(
        600, gt=0, description="seconds; an answer without a verdict after so long gets none"
    )
    max_failed_verdicts: float = Field(
        0.1, ge=0, le=1, description="share of the latest 512 answers that may be without verdict; beyond, stop"
    )
    drain_s: float = Field(10, ge=0, description="seconds that running groups get on a stop; the rest is handed on")
    max_wait_s: float = Field(
        600,
        gt=0,
        description="seconds; give up when the gate or the queue stays closed, or no replica is ready, so long",
    )

    @model_validator(mode="after")
    def _concurrency_in_order(self) -> RolloutSettings:
        if self.max_concurrency < self.min_concurrency:
            raise ValueError(
                f"max_concurrency is {self.max_concurrency}, expected at least min_concurrency ({self.min_concurrency})"
            )
        return self

    @model_validator(mode="after")
    def _episodes_hold_an_answer(self) -> RolloutSettings:
        needed = self.max_prompt_tokens + self.max_tokens
        if self.max_episode_tokens is not None and self.max_episode_tokens < needed:
            raise ValueError(
                f"max_episode_tokens is {self.max_episode_tokens}, but a prompt and its first answer can take {needed} "
                f"(max_prompt_tokens + max_tokens): raise the first or lower the others"
            )
        return self

    def episode_tokens(self, turns: int) -> int:
        """Most tokens of an episode of so many turns; an observation may be as long as a prompt."""
        return self.max_episode_tokens or turns * (self.max_prompt_tokens + self.max_tokens)


class EvaluationSettings(Settings):
    """Held-out evaluations: how many problems, how often, how answers are sampled."""

    num_problems: int = Field(200, gt=0, description="held-out problems per evaluation")
    every: int = Field(0, ge=0, description="versions between held-out evaluations while training; 0 for none")
    num_samples_shown: int = Field(6, ge=0, description="answers kept for the report")
    max_tokens: int | None = Field(None, gt=0, description="longest answer; rollout.max_tokens if unset")
    temperature: float = Field(
        0.0, ge=0, le=_MAX_TEMPERATURE, description="of the answers; 0 is greedy, and the next that vLLM has is 0.01"
    )

    @model_validator(mode="after")
    def _sampled_as_asked(self) -> EvaluationSettings:
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature:g}, but vLLM would sample at {_MIN_TEMPERATURE}: set it to 0, which "
                f"is greedy, or to {_MIN_TEMPERATURE} or more"
            )
        return self


class StoreSettings(Settings):
    """Where the queue and the weights live; empty values mean inside the run directory."""

    database: str = Field(
        "",
        description="of queue and progress: an SQLite file on a local disk, or on many machines "
        "postgresql://user@host/database (password: ~/.pgpass or PGPASSWORD); ?schema= is the run's name by default",
    )
    database_timeout_s: float = Field(
        60,
        ge=0.1,
        le=_MAX_DATABASE_TIMEOUT_S,
        description="seconds; give up when the database is locked, or its server away, for so long",
    )
    blobs: str = Field(
        "",
        description="folder of payloads above blob_bytes, which every host must see under this path, or a place in "
        "object storage by URL",
    )
    blob_bytes: int = Field(2**16, gt=0, le=2**30, description="bytes; larger payloads go to files, not rows")
    weights: str = Field(
        "",
        description="the weight store: a folder that every host sees under this path, or a place in object storage by "
        "URL, such as s3://bucket/prefix (docs/storage.md)",
    )
    cache: str = Field(
        "",
        description="with weights in object storage: each host's folder for files of it; ~/.cache/weir by default",
    )
    cache_bytes: int = Field(
        32 * 2**30, gt=0, le=2**60, description="bytes that a host's cache may take; what was not used for longest goes"
    )
    storage_timeout_s: float = Field(
        60, ge=1, le=3600, description="seconds for which a request to object storage that fails is tried again"
    )
    checkpoints: str = Field(
        "",
        description="a place in object storage by URL: each checkpoint is copied there before it counts as saved; a "
        "learner that lacks the newest one takes it from there (docs/storage.md)",
    )
    keep_versions: int = Field(8, ge=2, description="newest weight versions kept; older ones are deleted")
    anchor_every: int = Field(16, ge=1, description="versions between full ones; 1 publishes every version whole")
    max_changed: float = Field(0.6, ge=0, le=1, description="publish whole where more than this share of it changed")
    lease_s: float = Field(3600, ge=1, description="seconds after which the learner's leases of groups run out")
    claim_lease_s: float = Field(
        60, ge=1, description="seconds after which a worker's claims of prompts run out that it does not renew"
    )
    max_queued_groups: int = Field(16384, gt=0, description="groups that wait for the learner; workers wait beyond")
    max_queued_bytes: int = Field(
        4 * 2**30, gt=0, le=2**60, description="payload bytes that wait for the learner, likewise"
    )
    max_group_bytes: int = Field(256 * 2**20, gt=0, le=10**9, description="payload bytes of one group")
    max_age_s: float | None = Field(None, gt=0, description="seconds; groups that wait for longer become dead letters")
    max_tries: int = Field(3, ge=1, description="leases of a group before it becomes a dead letter")

    @model_validator(mode="after")
    def _known_engine(self) -> StoreSettings:
        if problem := secret_in_url(self.database):
            raise ValueError(problem)
        engine, separator, _ = self.database.partition("://")
        if separator and engine not in ("postgresql", "postgres") and not self.database.startswith("sqlite:///"):
            raise ValueError(f"database {engine}://...: expected a path, sqlite:///path or postgresql://user@host/name")
        if self.database in (":memory:", "sqlite:///", "sqlite:///:memory:"):
            raise ValueError(
                f"database {self.database}: every process would have one of its own; give a file that all of them see"
            )
        return self

    @model_validator(mode="after")
    def _known_storage(self) -> StoreSettings:
        for name in ("weights", "blobs", "checkpoints"):
            place = getattr(self, name)
            if is_url(place) and (problem := unshared(place) or url_problem(place)):
                raise ValueError(f"{name}: {problem}")
        if self.checkpoints and not is_url(self.checkpoints):
            raise ValueError(
                f"checkpoints: {self.checkpoints[:200]!a} is no URL, expected one such as s3://bucket/prefix; in a "
                f"folder they lie without this setting, in run.directory"
            )
        return self

    @model_validator(mode="after")
    def _a_group_has_room(self) -> StoreSettings:
        if self.max_queued_bytes < self.max_group_bytes:
            raise ValueError(
                f"max_queued_bytes is {self.max_queued_bytes}, expected at least max_group_bytes "
                f"({self.max_group_bytes}): a queue holds at least one group"
            )
        return self

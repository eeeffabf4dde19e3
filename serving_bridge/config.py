"""Settings of the serving side: replicas, rollouts, queue and weight store."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServingSettings(_Settings):
    """vLLM replicas that this process starts and keeps on the newest weights."""

    replicas: int = Field(1, ge=1)
    host: str = Field("127.0.0.1", description="address to bind; vLLM's control routes have no key: keep it private")
    port: int = Field(0, ge=0, le=65535, description="first port; 0 picks free ones")
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: int = Field(gt=1)
    max_num_seqs: int = Field(256, gt=0)
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    cpu_kv_cache_gib: int = Field(1, gt=0, description="KV cache on the CPU platform, GiB")
    threads: int = Field(1, gt=0, description="OpenMP threads of a replica on the CPU platform")
    tensor_parallel_size: int = Field(1, gt=0)
    enforce_eager: bool = True
    extra_args: tuple[str, ...] = Field((), description="more arguments for vLLM's server, as they are")
    start_timeout_s: float = Field(300, gt=0)
    update_timeout_s: float = Field(120, gt=0, description="bound on each step of a weight round")
    updates_at_once: int = Field(
        0,
        ge=0,
        description="replicas in a weight round at the same time: 1 goes replica by replica, 0 takes all at once",
    )
    drain_timeout_s: float = Field(10, gt=0, description="time that answers in flight get on a stop")
    max_restarts: int = Field(3, ge=0, description="restarts of a crashed replica before the fleet gives up")
    probe_tolerance: float | None = Field(
        None, gt=0, description="largest golden-prompt log-prob difference accepted, nats; by the dtype if unset"
    )


class RolloutSettings(_Settings):
    """How answers are sampled."""

    group_size: int = Field(8, ge=1)
    max_staleness: int = Field(2, ge=0, description="versions a group may lag when trained on; 0 is synchronous")
    temperature: float = Field(1.0, gt=0)
    max_prompt_tokens: int = Field(gt=0)
    max_tokens: int = Field(gt=0, description="longest answer, in tokens")
    concurrent_groups: int = Field(64, gt=0)
    request_timeout_s: float = Field(300, gt=0)
    max_attempts: int = Field(5, gt=0, description="tries per group when a replica fails or aborts")
    max_wait_s: float = Field(
        600, gt=0, description="give up when the gate stays closed or no replica is ready so long"
    )


class EvaluationSettings(_Settings):
    num_problems: int = Field(200, gt=0)
    every: int = Field(0, ge=0, description="versions between held-out evaluations while training; 0 for none")
    num_samples_shown: int = Field(6, ge=0)
    max_tokens: int | None = Field(None, gt=0, description="longest answer; rollout.max_tokens if unset")
    temperature: float = Field(0.0, ge=0, description="of the answers; 0 is greedy")


class StoreSettings(_Settings):
    """Where the queue and the weights live; empty values mean inside the run directory."""

    database: str = Field("", description="SQLite file of queue and progress; on a local disk")
    weights: str = Field("", description="folder of the weight store; every host must see it under this path")
    keep_versions: int = Field(8, ge=2)
    anchor_every: int = Field(16, ge=1, description="versions between full ones; 1 publishes every version whole")
    max_changed: float = Field(0.6, ge=0, le=1, description="publish whole where more than this share of it changed")
    lease_s: float = Field(3600, gt=0)
    max_tries: int = Field(3, ge=1, description="leases of a group before it becomes a dead letter")

    @model_validator(mode="after")
    def _local_database(self) -> StoreSettings:
        if "://" in self.database:
            raise ValueError(f"database {self.database!r}: expected the path of an SQLite file")
        return self

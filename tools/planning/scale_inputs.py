"""What the scale plan computes from: workload, devices, rates; each with a default and where that comes from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learner_jax.contracts import ModelConfigError

#: Shapes of public models, as their config.json has them.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-1.7B": {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "Llama-3.1-70B": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}

_H100 = "NVIDIA H100 SXM data sheet"
_TRT = "fitted to TensorRT-LLM 0.14, FP16 on H100 (its perf-overview.md)"
_BENCH = "docs/benchmarks.md"
_STATED = "stated, not measured"


class _Inputs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Inputs):
    """One optimizer step's work."""

    groups: int = Field(512, gt=0, description="prompts a step; DAPO's (arXiv 2503.14476, section 4.1)")
    group_size: int = Field(16, gt=0, description="answers to a prompt; DAPO's")
    prompt_tokens: int = Field(200, gt=0, description=f"mean tokens of a prompt; {_STATED}")
    answer_tokens: int = Field(2000, gt=0, description=f"mean tokens of an answer; {_STATED}")
    longest_answer: int = Field(16_384, gt=0, description=f"tokens of the longest answer allowed; {_STATED}")
    max_staleness: int = Field(2, gt=0, description="rollout.max_staleness, versions; Weir's default")
    versions_per_step: float = Field(1.0, gt=0, le=1, description="versions that the fleet takes a step; Weir's way")
    update_divisor: float = Field(147, gt=0, description=f"weights over an update, learning rate 1e-6; {_BENCH}")
    reference: bool = Field(True, description="whether KL needs the log-probs of a frozen reference")
    verdict_s: float = Field(0.001, ge=0, description=f"CPU seconds to score an answer; {_STATED}")


class Devices(_Inputs):
    """One GPU and what is between GPUs."""

    memory_bytes: float = Field(80e9, gt=0, description=_H100)
    bandwidth: float = Field(3.35e12, gt=0, description=f"bytes a second of its memory; {_H100}")
    flops: float = Field(989e12, gt=0, description=f"bf16 without sparsity; {_H100}")
    network: float = Field(
        50e9, gt=0, description="bytes a second per GPU to other hosts; 400 Gb/s, DGX H100 data sheet"
    )
    host_link: float = Field(64e9, gt=0, description="bytes a second to its host one way; PCIe 5.0 x16")
    store: float = Field(10e9, gt=0, description=f"bytes a second of the weight store, all readers; {_STATED}")
    gpus_per_host: int = Field(8, gt=0, description="DGX H100 data sheet")


class Engine(_Inputs):
    """How close the sampling engine comes to the device."""

    bandwidth_share: float = Field(0.8, gt=0, le=1, description=f"of the memory's bandwidth; {_TRT}")
    flops_share: float = Field(0.6, gt=0, le=1, description=f"of the device's flops; {_TRT}")
    step_s: float = Field(0.002, ge=0, description=f"seconds of every engine step beside; {_TRT}")
    parallel_share: float = Field(0.7, gt=0, le=1, description=f"of a replica of several GPUs; {_TRT}, 70B on 4 GPUs")
    memory_share: float = Field(0.9, gt=0, le=1, description="of the memory for weights and KV cache; vLLM's default")
    max_num_seqs: int = Field(256, gt=0, description="serving.max_num_seqs; Weir's default")


class Learner(_Inputs):
    """The train step."""

    flops_share: float = Field(0.4, gt=0, le=1, description="model flops; Llama 3, arXiv 2407.21783, section 3.3.2")
    bytes_per_parameter: float = Field(27, gt=0, description=f"fp32 moments, KL reference; tools.plan memory, {_BENCH}")
    microbatch_tokens: int = Field(16_384, gt=0, description=f"tokens between two gathers of a layer; {_STATED}")


class Rates(_Inputs):
    """What Weir's own processes take, as measured on one core of an AMD EPYC."""

    server_token_s: float = Field(15.8e-6, ge=0, description=f"API server, a token, packed answers; {_BENCH}")
    server_answer_s: float = Field(0.25e-3, ge=0, description=f"API server, an answer; {_BENCH}")
    rollout_token_s: float = Field(1.59e-6, ge=0, description=f"rollout worker, a token; {_BENCH}")
    rollout_answer_s: float = Field(0.29e-3, ge=0, description=f"rollout worker, an answer, with its put; {_BENCH}")
    sqlite_put_s: float = Field(1 / 2893, ge=0, description=f"queue on SQLite, a trajectory of 100 KB; {_BENCH}")
    postgres_put_s: float = Field(1 / 1597, ge=0, description=f"queue on PostgreSQL, payloads in files; {_BENCH}")
    take_s: float = Field(0.17e-3, ge=0, description=f"learner taking a trajectory out; {_BENCH}")
    encode: float = Field(1.92e9, gt=0, description=f"bytes a second of comparing, encoding, hashing; {_BENCH}")
    stage: float = Field(3.5e9, gt=0, description=f"bytes a second of decoding and hashing at a replica; {_BENCH}")
    pause_s: float = Field(0.147, ge=0, description=f"seconds of a pause with one answer in flight; {_BENCH}")
    rollout_workers: int = Field(1, gt=0, description="processes of tools.rollout; Weir's default")
    score_processes: int = Field(2, gt=0, description="task.score_processes of each; Weir's default")


class ScaleInputs(_Inputs):
    """All of it; a TOML file has a table for each part and names what it changes."""

    workload: Workload = Workload()
    devices: Devices = Devices()
    engine: Engine = Engine()
    learner: Learner = Learner()
    rates: Rates = Rates()


def read_inputs(path: Path | None) -> ScaleInputs:
    """The defaults, under what a TOML file changes.

    Raises:
      ModelConfigError: the file can't be read, or has an unknown name or a value out of range.
    """
    if path is None:
        return ScaleInputs()
    try:
        return ScaleInputs.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ModelConfigError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ModelConfigError(f"{path}: {key}: {problem['msg']}") from None
    except ValueError as error:  # TOML, or not UTF-8
        raise ModelConfigError(f"{path} is no TOML file: {error}") from None

"""What can be known of a model folder and the settings around it before a server starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from learner_jax.contracts import ModelConfig, hf_shapes
from serving_bridge.checks.findings import Finding
from serving_bridge.settings import ServingSettings

_GIB = 2**30
#: bytes of a weight, or of a key or value, in each dtype
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
#: sizes of a head that vLLM's attention on CPUs computes
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model, and bytes that a token of a sequence takes in a replica's KV cache."""

    num_parameters: int
    cache_bytes: int


def model_size(model: ModelConfig, dtype: str) -> ModelSize:
    """The size of a model that is served in `dtype`."""
    parameters = 0
    for shape in hf_shapes(model).values():
        size = 1
        for dimension in shape:
            size *= dimension
        parameters += size
    cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * ITEM_BYTES[dtype]
    return ModelSize(parameters, cache)


def serving_findings(model: ModelConfig, settings: ServingSettings, *, platform: str) -> Iterator[Finding]:
    """Whether vLLM can serve this model with these settings."""
    if settings.max_model_len > model.max_position_embeddings:
        yield Finding(
            "serving.max_model_len",
            f"at most {model.max_position_embeddings}, the model's context (max_position_embeddings in config.json)",
            str(settings.max_model_len),
            "lower it, and rollout.max_prompt_tokens and rollout.max_tokens with it, or take another model",
        )
    if model.num_heads % settings.tensor_parallel_size:
        yield Finding(
            "serving.tensor_parallel_size",
            f"a divisor of the model's {model.num_heads} attention heads",
            str(settings.tensor_parallel_size),
            "change it",
        )
    if platform == "cpu":
        yield from _cpu_findings(model, settings)


def _cpu_findings(model: ModelConfig, settings: ServingSettings) -> Iterator[Finding]:
    if model.head_dim not in CPU_HEAD_SIZES:
        yield Finding(
            "model",
            f"one whose heads have a size that vLLM computes on a CPU: {', '.join(map(str, CPU_HEAD_SIZES))}",
            f"head_dim {model.head_dim}",
            "take another model, or another model.create.head_dim",
        )
    needed = model_size(model, settings.dtype).cache_bytes * settings.max_model_len
    held = settings.cpu_kv_cache_gib * _GIB
    if needed > held:
        yield Finding(
            "serving.cpu_kv_cache_gib",
            f"at least {-(-needed // _GIB)}, room for one sequence of serving.max_model_len {settings.max_model_len}",
            str(settings.cpu_kv_cache_gib),
            "raise it, or lower serving.max_model_len",
        )
    batched = max(8192, settings.max_model_len)
    if settings.max_num_seqs > batched:
        yield Finding(
            "serving.max_num_seqs", f"at most {batched}, the tokens of a batch", str(settings.max_num_seqs), "lower it"
        )

"""A fake vLLM that really samples and goes wrong as told; `python -m tools.testing.fake_vllm.server` is its process."""

from tools.testing.fake_vllm.answers import Answer
from tools.testing.fake_vllm.core import Disturbance, EngineDiedError, EngineSettings
from tools.testing.fake_vllm.engine import Engine
from tools.testing.fake_vllm.qwen3 import Qwen3
from tools.testing.fake_vllm.weights import Applied, ModelWeights, Sampled, Worker, check_newer

__all__ = [
    "Answer",
    "Applied",
    "Disturbance",
    "Engine",
    "EngineDiedError",
    "EngineSettings",
    "ModelWeights",
    "Qwen3",
    "Sampled",
    "Worker",
    "check_newer",
]

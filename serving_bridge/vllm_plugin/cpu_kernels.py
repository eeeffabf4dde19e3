"""RMS norm on the CPU by vLLM's own compiled kernel, which its CPU platform has and does not use.

vLLM computes it there from six operations of torch. For small models that is a tenth of an engine step
(docs/benchmarks.md).
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.layernorm import RMSNorm

#: elements that the kernel reads at once, at most
_VECTOR = 16


def use_compiled_norms() -> None:
    """Has every `RMSNorm` that is made later computed by the kernel where it can be; harmless when called again."""
    RMSNorm.forward_cpu = _forward


def _forward(
    self: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """As `RMSNorm.forward_native`, which may overwrite `x` and `residual` where both are given.

    Args:
      x: [..., D].
      residual: [..., D], added first.
    """
    if not _fits(self, x):
        return self.forward_native(x, residual)
    weight = self.weight.data
    if residual is None:
        out = torch.empty(x.shape, dtype=x.dtype)
        _kernels().rms_norm(out, x.contiguous(), weight, self.variance_epsilon)
        return out
    if not (x.is_contiguous() and residual.is_contiguous()):
        return self.forward_native(x, residual)
    _kernels().fused_add_rms_norm(x, residual, weight, self.variance_epsilon)
    return x, residual


def _kernels() -> Any:
    return torch.ops._C


def _fits(norm: RMSNorm, x: torch.Tensor) -> bool:
    """In narrower types the kernel rounds at other places than torch and the learner do."""
    return (
        norm.has_weight
        and norm.variance_size_override is None
        and x.dtype == norm.weight.dtype == torch.float32
        and x.shape[-1] % _VECTOR == 0
    )

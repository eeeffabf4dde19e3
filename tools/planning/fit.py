"""Whether a plan fits into a device, and which settings would help where it does not."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from learner_jax.contracts import ModelConfig
from tools.planning.cases import Case, plan

if TYPE_CHECKING:
    from learner_jax.training import Plan

#: Bytes of a gigabyte.
GB = 1e9


def changes(case: Case, plan: Plan) -> dict[str, dict[str, Any]]:
    """Changes of settings that can only save memory, by what one would write."""
    settings = case.settings
    shards = case.sizes[0] * case.sizes[1]
    found: dict[str, dict[str, Any]] = {}
    for moments in ("bfloat16", "factored"):
        found[f'optimizer.moments = "{moments}"'] = {"optimizer.moments": moments}
    found['remat = "full"'] = {"remat": "full"}
    found[f"microbatch_rows = {shards}"] = {"microbatch_rows": shards}
    found['compute_dtype = "bfloat16"'] = {"compute_dtype": "bfloat16"}
    found['publish_dtype = "bfloat16"'] = {"publish_dtype": "bfloat16"}
    found["logits_chunk_tokens = 256"] = {"logits_chunk_tokens": 256}
    if not settings.loss.mismatch.lagging:
        found["mismatch_versions = 0"] = {"mismatch_versions": 0}
    kl = settings.loss.kl
    if not (kl.target or kl.budget or kl.reference or kl.reset_every):
        found["loss.kl.coefficient = 0"] = {"loss.kl.coefficient": 0.0}
    return found


def suggestions(model: ModelConfig, case: Case, limit: float) -> list[str]:
    """Settings to change, the one that saves most first, until it fits or nothing helps; then more devices."""
    current, lines = plan(model, case), []
    while current.peak_bytes > limit:
        options = []
        for label, values in changes(case, current).items():
            changed = case.with_settings(values)
            options.append((plan(model, changed).peak_bytes, label, changed))
        smallest, label, changed = min(options, key=lambda option: option[:2])
        if smallest >= current.peak_bytes:
            break
        saved = current.peak_bytes - smallest
        lines.append(f"learner.{label} saves {saved / GB:.1f} GB: {smallest / GB:.1f} GB")
        case, current = changed, plan(model, changed)
    if current.peak_bytes > limit:
        data, fsdp, tensor = case.sizes
        rows = math.lcm(case.settings.microbatch_rows, data * fsdp * 2)
        wider = dataclasses.replace(case.with_settings({"microbatch_rows": rows}), sizes=(data, fsdp * 2, tensor))
        saved = plan(model, wider).peak_bytes
        lines.append(f"mesh.fsdp = {fsdp * 2}, twice the devices: {saved / GB:.1f} GB")
    return lines


def verdict(plan: Plan, limit: float) -> str:
    """Whether a plan stays within `limit` bytes per device."""
    if plan.peak_bytes <= limit:
        return "fits"
    return "fits if the update is fused" if plan.fused_peak_bytes <= limit else "does not fit"

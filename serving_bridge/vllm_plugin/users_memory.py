"""A metric of vLLM's server: how much of the KV cache users hold.

vLLM's own counts training's answers, too, which give theirs up to users (`sharing`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from prometheus_client import Gauge

from serving_bridge.vllm_plugin import USERS_KV_USAGE

#: An engine answers between two steps. The page of metrics does not wait longer, and has the value of before.
_PATIENCE_S = 1.0

_gauge = Gauge(USERS_KV_USAGE, "Share of the KV cache that users hold, 0 to 1; training gives its own up to them.")


async def refresh(engine: Any) -> None:
    """Asks the engine, so that the page of metrics has its present value."""
    with suppress(TimeoutError):
        usage = await asyncio.wait_for(engine.engine_core.call_utility_async("users_kv_usage"), _PATIENCE_S)
        _gauge.set(usage)

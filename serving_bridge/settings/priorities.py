"""Whose requests a replica serves first where several want it at once."""

from __future__ import annotations

from typing import Literal, get_args

#: Classes of requests.
Priority = Literal["paid", "free", "evaluation", "training"]

#: From first to last served.
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
#: vLLM's `priority` of a request, where lower goes first (`--scheduling-policy priority`).
VLLM_PRIORITY: dict[Priority, int] = {"paid": 0, "free": 10, "evaluation": 20, "training": 30}
#: Of copies that no user waits for.
SHADOW_PRIORITY = 40

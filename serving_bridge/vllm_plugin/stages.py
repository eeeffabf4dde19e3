"""Pipeline stages on a CPU: what later ones need to take in what an earlier one computed."""

from __future__ import annotations

from functools import wraps
from typing import Any


def make_room_between_stages(runner: type[Any]) -> None:
    """Has a class of model runners make the tensors that a stage receives into, where its warm-up did not.

    vLLM makes them in a warm-up that its CPU worker leaves out with --enforce-eager; its first request then fails.
    Harmless when called again.
    """
    stock = runner.sync_and_gather_intermediate_tensors
    if getattr(stock, "makes_room", False):
        return

    @wraps(stock)
    def with_room(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return stock(self, *arguments, **named)

    with_room.makes_room = True  # type: ignore[attr-defined]
    runner.sync_and_gather_intermediate_tensors = with_room

"""What was sampled beside a proof: kept in the engine until the proof has passed, or never sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason


class UnprovenOutputs:
    """Outputs of requests that were in a step with probes, by client, in their order."""

    def __init__(self) -> None:
        self._kept: dict[int, list[EngineCoreOutput]] = {}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def keep(self, outputs: dict[int, EngineCoreOutputs], probes: Collection[str]) -> None:
        """Takes everything but the probes' own out of a step's outputs."""
        for client, step in outputs.items():
            if kept := [output for output in step.outputs if output.request_id not in probes]:
                self._kept.setdefault(client, []).extend(kept)
                step.outputs = [output for output in step.outputs if output.request_id in probes]

    def release(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Puts what is kept before a step's outputs; vLLM names the version of all of them."""
        for client, kept in self._kept.items():
            step = outputs.setdefault(client, EngineCoreOutputs())
            step.outputs = [*kept, *step.outputs]
        self._kept.clear()

    def give_up(self, others: Mapping[str, int]) -> set[str]:
        """Keeps only, for each request, that it was aborted; returns their names.

        A request has taken its tokens over, so it can't go on without them.

        Args:
          others: requests whose outputs are still to come, and their clients.
        """
        clients = {output.request_id: client for client, kept in self._kept.items() for output in kept} | dict(others)
        self._kept = {}
        for name, client in sorted(clients.items()):
            self._kept.setdefault(client, []).append(EngineCoreOutput(name, [], finish_reason=FinishReason.ABORT))
        return set(clients)

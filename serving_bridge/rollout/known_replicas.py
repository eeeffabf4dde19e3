"""The replicas as one worker knows them: read from the registry, given to its dispatcher, and reported on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from learner_jax.runtime import StandingWait, Waits
from serving_bridge.rollout.worker_queue import WorkerQueue
from serving_bridge.routing import Dispatcher, NoReplicaError, ReplicaRegistry, ReplicaRow

#: Between two looks at the registry, per replica: what they serve opens the gate, and each look reads a file of each.
_REGISTRY_S_PER_REPLICA, _MAX_REGISTRY_S = 0.02, 0.25


class KnownReplicas:
    """Those that take requests, as of the last look.

    Args:
      queue: its thread reads and writes the registry's files, too.
      worker: name under which requests are reported.
      max_wait_s: bound on the time without any replica.

    Attributes:
      ready: rows of those that take requests.
    """

    def __init__(
        self,
        registry: ReplicaRegistry,
        dispatcher: Dispatcher,
        queue: WorkerQueue,
        *,
        worker: str,
        max_wait_s: float,
        waits: Waits,
        log: Callable[..., None],
    ) -> None:
        self.ready: list[ReplicaRow] = []
        self._registry, self._dispatcher, self._queue = registry, dispatcher, queue
        self._worker = worker
        self._log = log
        self._next_look_s = float("-inf")
        self._unserved = StandingWait(
            waits,
            "a ready vLLM replica",
            on="fleet",
            limit_s=max_wait_s,
            setting="rollout.max_wait_s",
            error=NoReplicaError,
        )

    async def look(self, now_s: float) -> bool:
        """Reads the registry if it is time; returns whether it was.

        Raises:
          NoReplicaError: no replica was ready for too long.
        """
        is_due = now_s >= self._next_look_s
        if is_due:
            self.ready = await self._queue.call("the list of replicas", self._registry.ready)
            self._next_look_s = now_s + min(_MAX_REGISTRY_S, _REGISTRY_S_PER_REPLICA * len(self.ready))
            self._dispatcher.update(self.ready)
        self._unserved.look(not self.ready, self._described)
        return is_due

    def end(self) -> None:
        """Waits for no replica any more."""
        self._unserved.end()

    def figures(self) -> dict[str, Any]:
        """For the line of metrics: what waits, is in flight, and was cut since the last one."""
        return {
            "waiting_requests": self._dispatcher.num_waiting,
            "served_version": min((replica.version for replica in self.ready), default=None),
            "replicas": {name: {"in_flight": f, "limit": m} for name, (f, m) in self._dispatcher.loads().items()},
            "cuts": self._dispatcher.take_cuts(),
        }

    async def report_requests(self) -> None:
        """Tells the fleet's controller how this worker's requests ended."""
        if totals := dict(self._dispatcher.totals()):
            report = self._registry.report_requests
            try:
                await self._queue.call("the report of requests", report, self._worker, totals)
            except OSError as error:  # figures for the controller: the next report has these too
                self._log("retry", error=f"requests can't be reported: {error}")

    def _described(self) -> str:
        rows = self._registry.replicas()
        return f"known replicas: {[f'{row.name} is {row.state}' for row in rows] or 'none'}"

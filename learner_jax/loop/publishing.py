"""Publishing new weights beside training: the step that follows does not wait for disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError

import numpy as np

from learner_jax.contracts import GoldenPrompt, WeightManifest, WeightPublisher
from learner_jax.loop.device_changes import TooManyChangesError, device_changes
from learner_jax.models import export_tensors
from learner_jax.runtime import Waits, WeirError, crash_point
from learner_jax.training import Engine, Params, golden_prompts

Log = Callable[..., None]


class PublishingError(WeirError, RuntimeError):
    """New weights can't be published."""


class Publishing:
    """Claims a version number at once and stores its weights in the background, one version at a time.

    With several hosts, the leader claims and stores. All of them gather the weights first, tensor by tensor and in the
    thread that trains: programs that a second thread launches would meet those of other hosts in another order.

    On an accelerator of one host, a version whose predecessor is still on the device is compared with it there, and
    only what changed is copied to the host.

    Args:
      golden_prompts: token ids of the prompts whose log-probs travel with each version.
      keep: older versions whose weights stay in memory beside the newest.
      waits: where its waits are seen.
      compare_on_device: False copies every version to the host; by default decided by the platform.
    """

    def __init__(
        self,
        engine: Engine,
        publisher: WeightPublisher,
        golden_prompts: Sequence[Sequence[int]],
        *,
        keep: int,
        max_wait_s: float,
        log: Log,
        waits: Waits | None = None,
        compare_on_device: bool | None = None,
    ):
        on_accelerator = engine.platform != "cpu" and engine.hosts.count == 1
        self._compare_on_device = on_accelerator if compare_on_device is None else compare_on_device
        self._engine, self._publisher, self._golden_prompts = engine, publisher, golden_prompts
        self._keep, self._max_wait_s, self._log = keep, max_wait_s, log
        self._waits = waits or Waits()
        self._running: tuple[int, Future[None]] | None = None
        self.weights: dict[int, Params] = {}  #: published weights still in memory, by version

    def start(self, params: Params, *, step: int) -> int:
        """Begins to publish `params` and returns their version; `params` may be donated afterwards.

        Raises:
          PublishingError: the version before is not stored within `max_wait_s`.
        """
        self.wait()
        weights = self._engine.publication.weights(params)
        golden = self._engine.publication.golden_logprobs(weights, self._golden_prompts)
        hosts = self._engine.hosts
        version: int = hosts.agree(self._publisher.claim() if hosts.is_leader else None, f"version of step {step}")
        self.weights[version] = weights
        for old in sorted(self.weights)[: -1 - self._keep]:
            del self.weights[old]

        tensors: Iterable[tuple[str, np.ndarray]] = export_tensors(
            weights, self._engine.model_config, self._engine.settings.publish_dtype
        )
        if hosts.count > 1:
            kept = [tensor for tensor in tensors if hosts.is_leader]  # followers take part and keep none
            if not hosts.is_leader:
                return version
            tensors = kept

        def store() -> None:
            crash_point("storing")
            started = time.monotonic()
            prompts = golden_prompts(golden, self._golden_prompts)
            manifest = self._changed(weights, version, step, prompts)
            if manifest is None:
                manifest = self._publisher.publish(tensors, version=version, step=step, golden=prompts)
            crash_point("stored")
            self._log(
                "published",
                version=version,
                step=step,
                seconds=time.monotonic() - started,
                format=manifest.format,
                num_bytes=manifest.num_bytes,
                num_changed=manifest.num_changed,
            )

        self._running = version, _in_background(store)
        return version

    def _changed(
        self, weights: Params, version: int, step: int, golden: Sequence[GoldenPrompt]
    ) -> WeightManifest | None:
        """Publishes what differs from the version before, found on the device; None where that can't be."""
        if not self._compare_on_device:
            return None
        base = self._publisher.base()
        before = self.weights.get(base) if base is not None else None
        if base is None or before is None:
            return None
        try:
            changes = list(device_changes(weights, before, self._engine.model_config))
        except TooManyChangesError:
            return None
        return self._publisher.publish_changes(changes, base=base, step=step, golden=golden, version=version)

    def wait(self) -> None:
        """Waits until the version in progress, if any, is stored; raises what went wrong with it.

        Raises:
          PublishingError: it is not within `max_wait_s`.
        """
        if self._running is None:
            return
        version, future = self._running
        try:
            with self._waits.waiting(
                f"version {version} to be stored",
                on="the disk of store.weights",
                limit_s=self._max_wait_s,
                setting="learner.max_wait_s",
                error=PublishingError,
            ) as waiting:
                future.result(timeout=waiting.remaining_s)
        except FutureTimeoutError:
            raise waiting.error() from None
        self._running = None

    def close(self) -> None:
        """Lets the version in progress end, within `max_wait_s`; its outcome is not asked for any more."""
        if self._running is not None:
            wait([self._running[1]], timeout=self._max_wait_s)


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Runs in a thread that a process which has given up waiting may leave behind."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again where the outcome is asked for
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="publish", daemon=True).start()
    return outcome

"""The learner's real loop, ledger, feed, publishing and saving; only what computes is replaced by numbers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from learner_jax.contracts import Trajectory
from learner_jax.hosts import Hosts
from learner_jax.ledger import Ledger
from learner_jax.loop import Feed, Holding, Learner, Publishing, Saving, StepGroups
from learner_jax.runtime import NO_SPANS, Waits
from serving_bridge.queue import QueueConsumer
from serving_bridge.settings import StoreSettings
from serving_bridge.weights import Publisher, WeightStore
from tools.testing.simulate.blocking import Outcome, sleep
from tools.testing.simulate.checkpoints import SimulatedCheckpoints, State
from tools.testing.simulate.loop import Process
from tools.testing.simulate.setting import LOOK_S, LearnerPlan
from tools.testing.simulate.weights import GOLDEN, Parameters, golden_logprobs, tensors_of

_MEND_S = 0.5
_METRICS = {"skipped": 0.0, "empty": 0.0, "kl": 0.0}


class SimulatedLearner(Learner):
    """One life of the learner; its `run` blocks.

    Args:
      hold: why training must wait now; None where it may go on.
      new_identity: gives parameters that nobody had before.
      on_train: told of (groups, version trained from, history before) at each step, before anything is recorded.
      on_claimed: told of (version, identity) when parameters have got their version.
      on_published: told of the version once the learner believes that it is stored.
    """

    def __init__(
        self,
        process: Process,
        plan: LearnerPlan,
        *,
        queue: QueueConsumer,
        weights: Path,
        checkpoints: SimulatedCheckpoints,
        waits: Waits,
        hold: Callable[[], str | None],
        new_identity: Callable[[], int],
        on_train: Callable[[Sequence[Sequence[Trajectory]], int, set[str]], None],
        on_claimed: Callable[[int, int], None],
        on_published: Callable[[int], None],
        trace: Callable[..., None],
    ) -> None:
        self._process, self._plan = process, plan
        self._new_identity, self._on_train, self._trace = new_identity, on_train, trace
        self._on_claimed, self._on_published = on_claimed, on_published
        self._source, self._checkpoints, self._log = queue, checkpoints, self._logged  # type: ignore[assignment]
        self._hosts, self._ledger = Hosts(), Ledger()
        self._profiler, self._anew, self._spans = None, None, NO_SPANS
        self._changed_version, self._peak_flops = -1, 1.0
        self._state: Any = State(Parameters(new_identity()))
        self._kl: Any = _NoReference()
        self._settings = settings = _settings(plan)
        self._engine = engine = _engine(settings, self._hosts)
        store = WeightStore(weights, run="sim")
        self._publisher = Publisher(store, StoreSettings(anchor_every=4, max_changed=1.0), log=self._logged)
        self._publishing = Publishing(
            engine, self._publisher, GOLDEN, keep=0, max_wait_s=plan.max_wait_s, log=self._logged, waits=waits
        )
        self._feed = Feed(
            queue,
            self._hosts,
            settings,
            max_staleness=plan.max_staleness,
            should_stop=lambda: False,
            on_arrival=self._kl.arrived,
            waits=waits,
        )
        self._saving = Saving(
            checkpoints,  # type: ignore[arg-type]
            queue,
            self._hosts,
            self._ledger,
            max_wait_s=plan.max_wait_s,
            log=self._logged,
        )
        meanwhile = partial(self._saving.confirm, wait=False)
        self._holding = Holding(
            self._hosts, hold, lambda: False, begun=self._save, meanwhile=meanwhile, log=self._logged
        )

    @property
    def has_begun(self) -> bool:
        """Whether it is past its start."""
        return self._ledger.version >= 0

    async def mend(self) -> None:
        """The publisher's own thread: stores what it holds once more, whole, where the fleet asks for it."""
        while True:
            await asyncio.sleep(_MEND_S)
            self._process.check()
            with contextlib.suppress(OSError):
                self._publisher._mend_once()

    def in_background(self, work: Callable[[], None]) -> Outcome:
        """In place of the thread that stores a version."""
        outcome = Outcome(LOOK_S)

        async def store() -> None:
            await asyncio.sleep(self._plan.publish_s())
            self._process.check()
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised again where the outcome is asked for
                outcome.ended(error)
            else:
                outcome.ended(None)

        self._process.spawn(store())
        return outcome

    def _compile(self) -> None:
        """There are no programs."""

    def _batch(self, taken: StepGroups) -> Any:
        history = self._state.params.history
        self._on_train(taken.groups, self._ledger.version, {name for _, ids in history for name in ids})
        return SimpleNamespace(batch=taken), None

    def _update(self, batch: Any, update_rows: Sequence[int]) -> dict[str, float]:
        sleep(self._plan.train_s)
        params: Parameters = self._state.params
        step = (self._ledger.completed_steps + 1, tuple(batch.batch.group_ids))
        self._state = State(Parameters(self._new_identity(), (*params.history, step)))
        return _METRICS

    def _publish(self) -> None:
        super()._publish()
        self._on_claimed(self._ledger.version, self._state.params.identity)

    def _logged(self, event: str, **fields: Any) -> None:
        self._process.check()
        self._trace(self._process.name, event, *(fields.get(name, "") for name in ("step", "version")))
        if event == "published":
            self._on_published(fields["version"])


class _NoReference:
    """A run without KL, as `KLControl`."""

    is_on, saved_reference, coefficient = False, None, 0.0

    def arrived(self, groups: Any) -> None:
        """Nothing is computed ahead."""

    def found(self, holds_reference: Callable[[], bool]) -> None:
        """There is none to keep."""

    def resumed(self, position: Any, reference: Any) -> None:
        """There is nothing to go on from."""

    def step_completed(self, step: int, metrics: Any, params: Any) -> None:
        """Nothing adapts."""


@contextlib.contextmanager
def without_computing(background: Callable[[Callable[[], None]], Any]) -> Iterator[None]:
    """While the block runs, learners compute nothing and start no threads.

    Args:
      background: in place of the thread that stores a version, in the process that runs.
    """
    loop = "learner_jax.loop"
    with (
        mock.patch(f"{loop}.publishing._in_background", background),
        mock.patch(f"{loop}.publishing.wait", lambda outcomes, timeout: [each.wait(timeout) for each in outcomes]),
        mock.patch(f"{loop}.publishing.export_tensors", lambda params, *_: tensors_of(params.identity)),
        mock.patch(f"{loop}.learner.log_engine", return_value=1.0),
        mock.patch(f"{loop}.learner.step_record", lambda *_, **fields: {**fields, **_METRICS}),
        mock.patch(f"{loop}.feed._POLL_S", LOOK_S),
        mock.patch("serving_bridge.weights.publisher.threading", _NO_THREADS),
    ):
        yield


class _NoThread:
    """A publisher's thread for requests; `SimulatedLearner.mend` does its work."""

    def __init__(self, **options: Any) -> None:
        """Nothing starts."""

    def start(self) -> None:
        """See `mend`."""

    def join(self, timeout: float | None = None) -> None:
        """There is none."""


_NO_THREADS = SimpleNamespace(Thread=_NoThread, Lock=threading.Lock, Event=threading.Event)


def _settings(plan: LearnerPlan) -> Any:
    """What the loop reads of a learner's settings."""
    return SimpleNamespace(
        steps=plan.steps,
        groups_per_step=plan.groups_per_step,
        minibatches=1,
        max_wait_s=plan.max_wait_s,
        checkpoint=SimpleNamespace(every=plan.checkpoint_every),
        loss=SimpleNamespace(kl=SimpleNamespace(budget=None)),
        publish_dtype="float32",
    )


def _engine(settings: Any, hosts: Hosts) -> Any:
    """What the loop reads of an engine beside its steps: parameters are published as they are."""
    return SimpleNamespace(
        platform="cpu",
        hosts=hosts,
        settings=settings,
        model_config=None,
        publication=SimpleNamespace(weights=lambda params: params, golden_logprobs=golden_logprobs),
        lagging=SimpleNamespace(mismatch=lambda batch, weights, current_version: None),
    )

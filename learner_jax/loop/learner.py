"""The learner's loop: lease groups, train, publish, checkpoint, acknowledge; resumable at any point."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from learner_jax.batches import BatchStats, rl_batch
from learner_jax.checkpoints import Checkpoints
from learner_jax.contracts import Position, TrajectorySource, WeightPublisher
from learner_jax.ledger import Ledger
from learner_jax.loop.anew import Anew, begun, is_asked
from learner_jax.loop.feed import Feed, StepGroups
from learner_jax.loop.holding import Hold, Holding
from learner_jax.loop.kl_control import KLControl
from learner_jax.loop.profiling import Profiler
from learner_jax.loop.publishing import Publishing
from learner_jax.loop.saving import Saving
from learner_jax.loop.step_metrics import NOT_FINITE, TrainingError, merged, require_honest_ratios, row_counts
from learner_jax.loop.step_record import log_engine, log_history, log_step, seconds, step_record
from learner_jax.runtime import NO_SPANS, Spans, Waits, crash_point
from learner_jax.training import Engine, Params, PlannedBatch

Log = Callable[..., None]


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended: "finished", "stopped" (asked to), "kl_budget", or "anew" (in another life)."""

    reason: str
    position: Position


class Learner:
    """Trains `engine.settings.steps` optimizer steps from a trajectory source.

    With several hosts, each runs one of these. The leader alone changes the source and writes weights; whatever decides
    what runs next is the leader's or gathered, so that all hosts launch the same programs in the same order.

    Args:
      initial_params: weights that a fresh run starts from, and the frozen reference unless `reference_params` is given.
      reference_params: policy that the KL is measured against.
      golden_prompts: token ids of the prompts whose log-probs travel with each version.
      max_staleness: versions a group may lag when it is trained on.
      should_stop: asked between steps; True, on any host, ends the loop after a checkpoint.
      hold: asked between steps on the leader; while it gives a reason, no step is taken and no version published.
      anew: exchanges the weights of a life that begins, where that is asked for; asked between steps, too.
      profiler: traces some of the steps.
      waits: where its waits are seen.
    """

    def __init__(
        self,
        engine: Engine,
        initial_params: Params,
        *,
        seed: int,
        source: TrajectorySource,
        publisher: WeightPublisher,
        checkpoints: Checkpoints,
        golden_prompts: Sequence[Sequence[int]],
        max_staleness: int,
        log: Log,
        should_stop: Callable[[], bool],
        hold: Hold | None = None,
        anew: Anew | None = None,
        reference_params: Params | None = None,
        profiler: Profiler | None = None,
        waits: Waits | None = None,
        spans: Spans = NO_SPANS,
    ):
        self._engine, self._settings, self._hosts = engine, engine.settings, engine.hosts
        self._source, self._checkpoints, self._anew = source, checkpoints, anew
        self._state = engine.init_state(initial_params, seed=seed)
        self._kl = KLControl(engine, self._state.params, reference=reference_params, log=log)
        self._publishing = Publishing(
            engine,
            publisher,
            golden_prompts,
            keep=engine.settings.mismatch_versions,
            max_wait_s=engine.settings.max_wait_s,
            log=log,
            waits=waits,
        )
        self._feed = Feed(
            source,
            engine.hosts,
            engine.settings,
            max_staleness=max_staleness,
            online_staleness=engine.settings.online.max_staleness if engine.settings.online_groups else None,
            should_stop=should_stop,
            on_arrival=self._kl.arrived,
            waits=waits,
        )
        self._profiler, self._log, self._spans, self._ledger = profiler, log, spans, Ledger()
        self._saving = Saving(
            checkpoints, source, engine.hosts, self._ledger, max_wait_s=engine.settings.max_wait_s, log=log
        )
        meanwhile = partial(self._saving.confirm, wait=False)
        self._holding = Holding(self._hosts, hold, should_stop, begun=self._save, meanwhile=meanwhile, log=log)
        self._changed_version, self._peak_flops = -1, 0.0

    def run(self) -> Outcome:
        """Trains to the end, or until asked to stop; leaves a committed checkpoint behind in every case.

        Raises:
          StarvedError: no group came for `max_wait_s`.
          TrainingError: several steps in a row were not finite.
        """
        try:
            return self._run()
        finally:
            if self._profiler is not None:
                self._profiler.close()
            self._publishing.close()

    def _run(self) -> Outcome:
        ledger = self._ledger
        self._resume()
        self._peak_flops = log_engine(self._engine, self._log)
        self._publish()
        self._publishing.wait()  # what can't be published at all should be known before anything is trained
        if self._hosts.is_leader:
            self._source.mark_trained([], completed_steps=ledger.completed_steps, trained_version=ledger.version)
        if ledger.completed_steps < self._settings.steps:
            self._compile()
        reason, skipped_in_a_row = "finished", 0
        while ledger.completed_steps < self._settings.steps:
            if not self._holding.may_go_on(ledger.completed_steps + 1):
                reason = "stopped"
                break
            if is_asked(self._anew, self._hosts):
                reason = "anew"
                break
            if self._profiler is not None:
                self._profiler.before_step()
            record = self._one_step()
            if self._profiler is not None:
                self._profiler.after_step()
            if record is None:
                reason = "stopped"
                break
            skipped_in_a_row = skipped_in_a_row + 1 if record["skipped"] else 0
            if skipped_in_a_row >= 3:
                self._save()
                raise TrainingError(NOT_FINITE)
            if (budget := self._settings.loss.kl.budget) is not None and record["kl"] > budget:
                reason = "kl_budget"
                break
        if reason == "stopped":
            self._log("stopping", step=ledger.completed_steps)
        self._save()
        self._publishing.wait()
        self._saving.confirm(wait=True)
        if reason not in ("stopped", "anew") and self._hosts.is_leader:
            self._source.finish()
        return Outcome(reason, self._position())

    def _resume(self) -> None:
        start, position = self._saving.begin(), None
        if start is not None:
            self._kl.found(lambda: self._checkpoints.holds_reference(start.step))
            self._state, position, reference = self._checkpoints.restore(
                self._state, reference=self._kl.saved_reference, step=start.step, files_checked=True
            )
            self._kl.resumed(position, reference)
            consumed = len(position.consumed_trajectory_ids)
            self._log("resumed", step=position.completed_steps, consumed=consumed, verified=start.verified)
        self._saving.recover(position)
        self._state = begun(self._anew, self._engine, self._state, self._ledger.completed_steps, self._log)
        log_history(self._log, "life", step=self._ledger.completed_steps)

    def _compile(self) -> None:
        """Compiles what steps need, while the fleet gets ready and the first groups are sampled."""
        started = time.monotonic()
        older = self._publishing.weights.values() if self._feed.takes_older else ()
        self._engine.compile(self._state, reference=self._kl.policies, older=older)
        self._log("compiled", seconds=time.monotonic() - started)

    def _one_step(self) -> dict[str, Any] | None:
        started, ledger = time.monotonic(), self._ledger
        taken = self._feed.take(ledger.completed_steps + 1, trained_version=ledger.version)
        if taken is None:
            return None
        waited = time.monotonic()
        crash_point("leased")
        batch, stats = self._batch(taken)
        lagging = self._engine.lagging.mismatch(batch.batch, self._publishing.weights, current_version=ledger.version)
        prepared = time.monotonic()
        metrics = self._update(batch, taken.update_rows)
        trained = time.monotonic()
        crash_point("trained")

        sampled_version, kl_coefficient = ledger.version, self._kl.coefficient
        ledger.step_completed()
        self._kl.step_completed(ledger.completed_steps, metrics, self._state.params)
        self._publish()
        if not (metrics["skipped"] or metrics["empty"]):
            self._changed_version = ledger.version
        crash_point("published")
        if self._hosts.is_leader:
            self._source.mark_trained(
                taken.group_ids, completed_steps=ledger.completed_steps, trained_version=ledger.version
            )
        crash_point("marked")
        log_history(self._log, "consumed", step=ledger.completed_steps, taken=taken, version=sampled_version)
        ledger.trained_on(taken.trajectory_ids)
        published = time.monotonic()
        self._saving.confirm(wait=False)
        if ledger.completed_steps % self._settings.checkpoint.every == 0:
            self._save()
        ended = time.monotonic()
        record = step_record(
            stats,
            metrics,
            lagging,
            step=ledger.completed_steps,
            version=sampled_version,
            kl_coefficient=kl_coefficient if self._kl.is_on else None,
            dropped_stale=taken.num_dropped_stale,
            peak_flops=self._peak_flops,
            **seconds(started, waited, prepared, trained, published, ended),
        )
        log_step(self._log, self._spans, record, taken.group_ids, published_version=ledger.version)
        return record

    def _batch(self, taken: StepGroups) -> tuple[PlannedBatch, BatchStats]:
        version, kl_coefficient = self._ledger.version, self._kl.coefficient
        rows, reference = self._kl.reference()
        batch, stats = rl_batch(
            taken.groups,
            self._settings.loss,
            sequence_length=self._settings.sequence_length,
            trained_version=version,
            minibatches=taken.update_rows,
            rows=rows,
            reference=reference,
            kl_coefficient=kl_coefficient,
            hosts=self._hosts,
        )
        planned = self._engine.statistics.prepared(
            self._state.params, self._engine.planned(batch), current_version=version, kl_coefficient=kl_coefficient
        )
        return self._engine.lagging.prepared(planned, self._publishing.weights, current_version=version), stats

    def _update(self, batch: PlannedBatch, update_rows: Sequence[int]) -> dict[str, float]:
        """Makes the batch's optimizer updates and returns their metrics.

        Raises:
          TrainingError: tokens of older versions all have a ratio of exactly 1.
        """
        parts = []
        for update in self._engine.updates(batch, update_rows):
            started = time.monotonic()
            packed = self._engine.pack(update)
            transferred = time.monotonic()
            self._state, metrics = self._engine.step(
                self._state,
                packed,
                current_version=self._ledger.version,
                changed_version=self._changed_version,
                kl_coefficient=self._kl.coefficient,
            )
            parts.append({name: float(value) for name, value in metrics.items()})
            parts[-1] |= {"transfer_s": transferred - started, "compute_s": time.monotonic() - transferred}
            parts[-1]["shared_prompts"] = float(packed.plan.shares_prompts)
            parts[-1] |= row_counts(packed.plan, packed.model_flops, self._hosts)
        whole = merged(parts)
        require_honest_ratios(whole, step=self._ledger.completed_steps + 1, changed_version=self._changed_version)
        return whole

    def _publish(self) -> None:
        self._ledger.published(self._publishing.start(self._state.params, step=self._ledger.completed_steps))

    def _save(self) -> None:
        def position() -> Position:
            log_history(self._log, "saving", step=self._ledger.completed_steps)
            return self._position()

        self._saving.save(self._state, position, reference=self._kl.saved_reference)

    def _position(self) -> Position:
        return self._saving.position(kl_coefficient=self._kl.coefficient)

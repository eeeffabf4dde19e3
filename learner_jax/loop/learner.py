"""The learner's loop: lease groups, train, publish, checkpoint, acknowledge; resumable at any point."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.batches import Batch, BatchStats, Reference, Sequences, rl_batch
from learner_jax.checkpoints import Checkpoints, Position
from learner_jax.contracts import TrajectorySource, WeightPublisher
from learner_jax.loop.feed import Feed, Groups, StepGroups
from learner_jax.loop.profiling import Profiler
from learner_jax.loop.publishing import Publishing
from learner_jax.loop.reference_ahead import ReferenceAhead
from learner_jax.loop.saving import Saving
from learner_jax.loop.step_metrics import merged, with_explained_variance
from learner_jax.losses import adapted_coefficient
from learner_jax.models import flops, split_parameters
from learner_jax.runtime import Waits, WeirError, crash_point
from learner_jax.training import Engine, Mismatch, Params

Log = Callable[..., None]

#: Fewer older tokens than this prove nothing when all their ratios are 1.
_HONEST_FROM_TOKENS = 16
#: Set in the environment, lives, steps and saves are logged with what they consumed: for checks of a run's history.
_RECORD_HISTORY = "WEIR_RECORD_HISTORY"
#: Newest policy versions whose optimizer steps a checkpoint remembers.
_VERSIONS_REMEMBERED = 256


class TrainingError(WeirError, RuntimeError):
    """Training can't go on soundly."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended: "finished", "stopped" (asked to) or "kl_budget"."""

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
        reference_params: Params | None = None,
        profiler: Profiler | None = None,
        waits: Waits | None = None,
    ):
        self._engine = engine
        self._settings = engine.settings
        self._hosts = engine.hosts
        self._source = source
        self._publishing = Publishing(
            engine,
            publisher,
            golden_prompts,
            keep=engine.settings.mismatch_versions,
            max_wait_s=engine.settings.max_wait_s,
            log=log,
            waits=waits,
        )
        self._checkpoints = checkpoints
        self._feed = Feed(
            source,
            engine.hosts,
            engine.settings,
            max_staleness=max_staleness,
            should_stop=should_stop,
            on_arrival=self._groups_arrived,
            waits=waits,
        )
        self._profiler = profiler
        self._log = log
        self._should_stop = should_stop
        self._saving = Saving(checkpoints, source, engine.hosts, max_wait_s=engine.settings.max_wait_s, log=log)
        self._state = engine.init_state(initial_params, seed=seed)
        self._kl_coefficient = self._settings.loss.kl.coefficient
        self._keeps_reference = bool(self._settings.loss.kl.reset_every)
        self._reference: Params | None = None
        if self._kl_coefficient > 0:
            self._reference = self._policy_copy() if reference_params is None else reference_params
        self._reference_ahead = ReferenceAhead(
            self._reference_logprobs,
            sequence_length=self._settings.sequence_length,
            # Hosts must compute together, and what fills a microbatch of one does not fill the others'.
            microbatch_tokens=math.inf
            if self._hosts.count > 1
            else self._settings.microbatch_rows * max(self._settings.row_lengths),
        )
        self._completed, self._version = 0, -1
        self._steps_of_versions: dict[int, int] = {}
        self._changed_version = -1
        self._peak_flops = 0.0

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
        self._resume()
        self._log_engine()
        self._publish()
        self._publishing.wait()  # what can't be published at all should be known before anything is trained
        if self._hosts.is_leader:
            self._source.mark_trained([], completed_steps=self._completed, trained_version=self._version)
        reason = "finished"
        skipped_in_a_row = 0
        while self._completed < self._settings.steps:
            if any(self._hosts.gather(self._should_stop(), f"whether to stop before step {self._completed + 1}")):
                reason = "stopped"
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
                raise TrainingError(
                    "the loss or its gradient was not finite in 3 steps in a row; parameters are those before them: "
                    "lower learner.optimizer.learning_rate or look at the rewards"
                )
            budget = self._settings.loss.kl.budget
            if budget is not None and record["kl"] > budget:
                reason = "kl_budget"
                break
        if reason == "stopped":
            self._log("stopping", step=self._completed)
        self._save()
        self._publishing.wait()
        self._saving.confirm(wait=True)
        if reason != "stopped" and self._hosts.is_leader:
            self._source.finish()
        return Outcome(reason, self._position())

    def _log_engine(self) -> None:
        """Says once what runs where, and what the device can do at most."""
        mesh, settings = self._engine.mesh, self._settings
        device = mesh.local_devices[0]
        peak = settings.peak_tflops * 1e12 or flops.matmul_peak(device, settings.compute_dtype)
        self._peak_flops = peak * mesh.size
        self._log(
            "engine",
            platform=self._engine.platform,
            device=device.device_kind,
            mesh=dict(mesh.shape),
            host=self._hosts.index,
            hosts=self._hosts.count,
            attention=self._engine.attention,
            compute_dtype=settings.compute_dtype,
            row_tokens=list(settings.row_lengths),
            microbatch_rows=settings.microbatch_rows,
            peak_tflops_per_device=peak / 1e12,
        )

    def _resume(self) -> None:
        start, position = self._saving.begin(), None
        if start is not None:
            # A reference that was moved stands, also where this life moves it no more.
            self._keeps_reference |= self._reference is not None and self._checkpoints.holds_reference(start.step)
            self._state, position, reference = self._checkpoints.restore(
                self._state, reference=self._saved_reference(), step=start.step, files_checked=True
            )
            self._reference = self._reference if reference is None else reference
            if self._reference is not None and self._settings.loss.kl.target is not None:  # else it is a setting alone
                self._kl_coefficient = position.kl_coefficient or self._kl_coefficient
            self._completed = position.completed_steps
            self._steps_of_versions = dict(position.steps_of_versions)
            consumed = len(position.consumed_trajectory_ids)
            self._log("resumed", step=self._completed, consumed=consumed, verified=start.verified)
        self._saving.recover(position)
        self._record_history("life")

    def _one_step(self) -> dict[str, Any] | None:
        started = time.monotonic()
        taken = self._feed.take(self._completed + 1, trained_version=self._version)
        if taken is None:
            return None
        waited = time.monotonic()
        crash_point("leased")
        batch, stats = self._batch(taken)
        lagging = self._engine.lagging_mismatch(batch, self._publishing.weights, current_version=self._version)
        prepared = time.monotonic()
        metrics = self._update(batch, taken.update_rows)
        trained = time.monotonic()
        crash_point("trained")

        sampled_version, kl_coefficient = self._version, self._kl_coefficient
        self._completed += 1
        self._control_kl(metrics)
        self._publish()
        if not (metrics["skipped"] or metrics["empty"]):
            self._changed_version = self._version
        crash_point("published")
        if self._hosts.is_leader:
            self._source.mark_trained(taken.group_ids, completed_steps=self._completed, trained_version=self._version)
        crash_point("marked")
        self._record_history("consumed", taken, version=sampled_version)
        self._saving.trained_on(taken.trajectory_ids)
        published = time.monotonic()
        self._saving.confirm(wait=False)
        if self._completed % self._settings.checkpoint.every == 0:
            self._save()
        ended = time.monotonic()
        return self._record(
            stats,
            metrics,
            lagging,
            version=sampled_version,
            kl_coefficient=kl_coefficient,
            dropped_stale=taken.num_dropped_stale,
            wait_s=waited - started,
            prepare_s=prepared - waited,
            train_s=trained - waited,
            publish_s=published - trained,
            save_s=ended - published,
            step_s=ended - started,
        )

    def _batch(self, taken: StepGroups) -> tuple[Batch, BatchStats]:
        reference: Reference | None = None
        if self._reference is not None:
            reference = self._reference_ahead.result()
        batch, stats = rl_batch(
            taken.groups,
            self._settings.loss,
            sequence_length=self._settings.sequence_length,
            trained_version=self._version,
            minibatches=taken.update_rows,
            reference=reference,
            kl_coefficient=self._kl_coefficient,
            hosts=self._hosts,
        )
        batch = self._engine.prepared(
            self._state.params, batch, current_version=self._version, kl_coefficient=self._kl_coefficient
        )
        if self._settings.loss.mismatch.lagging:
            trainer = self._engine.trainer_logprobs(batch, self._publishing.weights, current_version=self._version)
            batch = replace(batch, trainer_logprobs=jnp.asarray(trainer))
        return batch, stats

    def _reference_logprobs(self, rows: Sequences) -> np.ndarray:
        return self._engine.logprobs(self._reference, rows.tokens, rows.sampled, rows.lengths)

    def _update(self, batch: Batch, update_rows: Sequence[int]) -> dict[str, float]:
        """Makes the batch's optimizer updates and returns their metrics.

        Raises:
          TrainingError: tokens of older versions all have a ratio of exactly 1.
        """
        parts = []
        for end, rows in zip(np.cumsum(update_rows), update_rows, strict=True):
            started = time.monotonic()
            packed = self._engine.pack(jax.tree.map(lambda x: x[end - rows : end], batch))  # noqa: B023
            transferred = time.monotonic()
            self._state, metrics = self._engine.step(
                self._state,
                packed,
                current_version=self._version,
                changed_version=self._changed_version,
                kl_coefficient=self._kl_coefficient,
            )
            parts.append({name: float(value) for name, value in metrics.items()})
            parts[-1] |= {
                "transfer_s": transferred - started,
                "compute_s": time.monotonic() - transferred,
                "shared_prompts": float(packed.plan.shares_prompts),
            }
            slots = packed.plan.sources.size
            own = [slots, slots * packed.plan.real_share, packed.model_flops]
            sums = np.sum(self._hosts.gather(own, "tokens in rows"), axis=0).tolist()
            parts[-1] |= dict(zip(("slot_tokens", "real_tokens", "model_flops"), sums, strict=True))
        whole = merged(parts)
        lagged = round(whole["lagged_tokens"])
        if lagged >= _HONEST_FROM_TOKENS and whole["lagged_log_ratio_max"] == 0.0:
            raise TrainingError(
                f"step {self._completed + 1}: {lagged} tokens of versions older than {self._changed_version} have an "
                f"importance ratio of exactly 1, although the weights have changed since: behavior_logprobs are not "
                f"those of the policy that sampled the tokens; look at what fills them on the rollout side"
            )
        return whole

    def _control_kl(self, metrics: dict[str, float]) -> None:
        """Adapts the coefficient to its target, and moves the reference where that is scheduled."""
        chosen = self._settings.loss.kl
        if chosen.target is not None:
            self._kl_coefficient = adapted_coefficient(
                self._kl_coefficient, metrics["kl"], target=chosen.target, horizon=chosen.horizon
            )
        if chosen.reset_every and self._completed % chosen.reset_every == 0:
            self._reference = self._policy_copy()
            self._log("reference_reset", step=self._completed)

    def _policy_copy(self) -> Params:
        """The policy's parameters in buffers of their own: those of the state are donated to the train step."""
        return jax.tree.map(jnp.copy, split_parameters(self._state.params)[0])

    def _saved_reference(self) -> Params | None:
        """The reference, if a resumed run can't take it from where a fresh one does."""
        return self._reference if self._keeps_reference else None

    def _groups_arrived(self, groups: Groups) -> None:
        if self._reference is not None:
            self._reference_ahead.add(groups)

    def _publish(self) -> None:
        self._version = self._publishing.start(self._state.params, step=self._completed)
        self._steps_of_versions[self._version] = self._completed
        for version in list(self._steps_of_versions)[:-_VERSIONS_REMEMBERED]:
            del self._steps_of_versions[version]

    def _record_history(self, event: str, taken: StepGroups | None = None, **fields: Any) -> None:
        """Logs what a check of the history needs, if asked to: two learners may live at the same time there."""
        if _RECORD_HISTORY not in os.environ:
            return
        if taken is not None:
            oldest = [min(trajectory.oldest_version for trajectory in group) for group in taken.groups]
            fields |= {"groups": taken.group_ids, "oldest": oldest}
        self._log(event, step=self._completed, life=os.getpid(), **fields)

    def _save(self) -> None:
        def position() -> Position:
            self._record_history("saving")
            return self._position()

        self._saving.save(self._state, position, step=self._completed, reference=self._saved_reference())

    def _position(self) -> Position:
        return self._saving.position(
            completed_steps=self._completed,
            trained_version=self._version,
            kl_coefficient=self._kl_coefficient,
            steps_of_versions=tuple(self._steps_of_versions.items()),
        )

    def _record(
        self,
        stats: BatchStats,
        metrics: dict[str, float],
        lagging: Mismatch,
        *,
        version: int,
        kl_coefficient: float,
        dropped_stale: int,
        **seconds: float,
    ) -> dict[str, Any]:
        current = Mismatch(
            metrics.pop("mismatch_sum"), metrics.pop("mismatch_max"), round(metrics.pop("mismatch_tokens"))
        )
        mismatch = current + lagging
        slots, real = metrics.pop("slot_tokens"), metrics.pop("real_tokens")
        model_flops = metrics.pop("model_flops")
        record = {
            "step": self._completed,
            "version": version,
            **asdict(stats),
            **with_explained_variance(metrics),
            **({} if self._reference is None else {"kl_coefficient": kl_coefficient}),
            "mismatch_mean_abs_logprob": mismatch.mean,
            "mismatch_max_abs_logprob": mismatch.maximum if mismatch.num_tokens else None,
            "mismatch_tokens": mismatch.num_tokens,
            "dropped_stale": dropped_stale,
            "real_token_share": real / slots,
            "mfu": model_flops / (metrics["compute_s"] * self._peak_flops),
            **seconds,
        }
        self._log("step", **record)
        return record

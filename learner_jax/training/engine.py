"""The learner's compiled functions over one device mesh, put together: train step, statistics, publication."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import jax

from learner_jax.batches import Batch, Lengths, Packing
from learner_jax.contracts import ModelConfig
from learner_jax.hosts import Hosts
from learner_jax.models import Implementation, sharding
from learner_jax.settings import LearnerSettings
from learner_jax.training.compiled_step import CompiledStep
from learner_jax.training.lagging import Lagging
from learner_jax.training.microbatches import Microbatches, PackedBatch, PlannedBatch
from learner_jax.training.objective import Metrics, Objective, StepScalars
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.packed_model import PackedModel
from learner_jax.training.placement import Placement
from learner_jax.training.publication import Publication
from learner_jax.training.states import States
from learner_jax.training.statistics import Statistics
from learner_jax.training.train_step import Gradients, Params, TrainState


class Engine:
    """Compiles each function once for its fixed shapes and keeps arrays where the sharding rules put them.

    Args:
      temperature: the sampler's; log-probs of the train step are taken at it.
      objective: the loss of the train step.
      hosts: processes over which the mesh spreads. Batches, and statistics of their tokens, are then this host's part;
        every method that takes a batch or parameters must be called on all hosts, in the same order.

    Attributes:
      statistics: of sequences, such as log-probs.
      lagging: tokens of older versions.
      publication: what travels to the fleet.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        model_config: ModelConfig,
        *,
        objective: Objective,
        temperature: float,
        devices: Sequence[jax.Device] | None = None,
        hosts: Hosts | None = None,
    ):
        self.settings, self.model_config, self.objective = settings, model_config, objective
        self.hosts = hosts or Hosts()
        self._placement = Placement(settings, model_config, self.hosts, devices, cuts=objective.packs)
        self._model = PackedModel.of(settings, model_config, self._placement, temperature=temperature)
        optimizer = make_optimizer(settings.optimizer)
        self._states = States(settings, model_config, self._placement, optimizer)
        self._microbatches = Microbatches(settings, model_config, self._model, self.hosts, packs=objective.packs)
        self._step = CompiledStep(self._model, objective, self._states, optimizer)
        self.statistics = Statistics(self._model, self._microbatches)
        self.lagging = Lagging(settings, self.statistics, self.hosts)
        self.publication = Publication(self._model)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self._placement.mesh

    @property
    def platform(self) -> str:
        """Of the mesh's devices, as JAX names it."""
        return self._placement.platform

    @property
    def attention(self) -> Implementation:
        """The kernel that runs."""
        return self._model.attention

    @property
    def parameter_shardings(self) -> Params:
        """Of the policy's parameters."""
        return self._placement.policy

    def init_state(self, params: Params, *, seed: int) -> TrainState:
        """A fresh state around host or device parameters, sharded by the rules. Copies: `params` stay usable.

        Adds the value function that the settings ask for, unless the parameters hold one.
        """
        return self._states.fresh(params, seed=seed)

    def placed(self, policy: Params) -> Params:
        """The policy's parameters, from the host, where the sharding rules put them."""
        return sharding.place(policy, self.parameter_shardings)

    def packing(self, lengths: Lengths, width: int) -> Packing:
        """How sequences, padded to `width` tokens on the host, fit into rows.

        Raises:
          PackingError: one is longer than the longest row.
        """
        return self._microbatches.packing(lengths, width)

    def planned(self, batch: Batch) -> PlannedBatch:
        """The batch, whose sequences are packed once for all that is computed of them."""
        return self._microbatches.planned(batch)

    def updates(self, planned: PlannedBatch, sizes: Sequence[int]) -> Iterator[PlannedBatch]:
        """The batch of each optimizer update, of so many consecutive sequences."""
        return self._microbatches.parts(planned, sizes)

    def pack(self, batch: Batch | PlannedBatch) -> PackedBatch:
        """Lays a batch into rows and moves the first microbatch to the devices.

        Raises:
          PackingError: a sequence is longer than the longest row.
        """
        return self._microbatches.pack(batch)

    def step(
        self,
        state: TrainState,
        batch: Batch | PackedBatch,
        *,
        current_version: int,
        changed_version: int | None = None,
        kl_coefficient: float | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step; `state` is donated.

        Args:
          batch: as `rl_batch` and `supervised_batch` build it, or packed ahead by `pack`.
          changed_version: as of `StepScalars`; `current_version` by default.
          kl_coefficient: the settings' by default.
        """
        scalars = StepScalars.of(
            self.settings.loss,
            current_version=current_version,
            changed_version=changed_version,
            kl_coefficient=kl_coefficient,
        )
        whole = self.pack(batch) if isinstance(batch, Batch) else batch
        return self._step(state, self._microbatches.of(whole), scalars)

    def gradients(
        self, params: Params, batch: Batch, *, current_version: int, kl_coefficient: float | None = None
    ) -> Gradients:
        """Loss, metrics and gradients of a whole batch, without an update."""
        scalars = StepScalars.of(self.settings.loss, current_version=current_version, kl_coefficient=kl_coefficient)
        return self._step.gradients(params, self._microbatches.of(self.pack(batch)), scalars)

    def compile(self, state: TrainState, *, reference: Sequence[Params] = (), older: Iterable[Params] = ()) -> None:
        """Compiles what steps from this state need, before there is a batch; nothing runs.

        Args:
          reference: the policy that the KL is measured against, if any.
          older: published policies whose tokens steps may compute again.
        """
        self._step.compile(state)
        for params in [*reference, *([state.params] if self.statistics.prepares else [])]:
            self.statistics.compile(params)
        for params in older:
            self.statistics.compile(params, few=True)

    def lowered(self, row_tokens: int) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """(gradients of one microbatch, update), lowered from shapes alone: nothing is allocated."""
        return self._step.lowered(row_tokens)

    def num_compilations(self) -> int:
        """How many programs have been compiled for the train step; the same after any number of steps."""
        return self._step.num_compilations()

"""Where parameters and rows of batches lie on the device mesh, and which rows are this host's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from learner_jax.contracts import ModelConfig
from learner_jax.hosts import Hosts
from learner_jax.models import flops, sharding
from learner_jax.settings import LearnerSettings

#: Statistics of little go through the devices in rows by this many times fewer than those of a microbatch.
_FEW = 8
#: Slots of a microbatch on a CPU, for models of at most so many parameters: activations then stay in a core's cache,
#: and few rows without tokens are computed. Larger models would pay for adding up gradients more often.
_CPU_SLOTS, _CPU_PARAMETERS = 256, 4_000_000


class Placement:
    """The mesh, and the sharding of everything that lies on it.

    Args:
      devices: all of JAX's by default.
      cuts: whether microbatches may be cut into smaller ones, so that rows need not stay together.

    Attributes:
      policy: shardings of the policy's parameters.
      parameters: those and the value function's.
      rows: sharding of an array whose first dimension is the row.
      replicated: sharding of an array that every device holds whole.
      num_hosts: over which the mesh spreads.
      own_rows: this host's rows of one microbatch.
      few_rows: of the smallest part of a batch that goes through the devices, likewise.

    Raises:
      ShardingError: a dimension of the model, or the rows of a microbatch, does not divide over the mesh.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        model_config: ModelConfig,
        hosts: Hosts,
        devices: Sequence[jax.Device] | None = None,
        *,
        cuts: bool = True,
    ) -> None:
        self.mesh = sharding.make_mesh(settings.mesh, devices)
        self.policy = sharding.parameter_shardings(model_config, self.mesh)
        self.parameters = self.policy | sharding.value_shardings(model_config, settings.loss.value.model, self.mesh)
        self.rows = sharding.batch_sharding(self.mesh)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        sharding.check_rows(settings.microbatch_rows, self.mesh)
        sharding.check_hosts(self.mesh, hosts.count)
        self.num_hosts = hosts.count
        self.own_rows = settings.microbatch_rows // hosts.count
        # A few sequences alone should not cost a whole microbatch.
        shards = max(1, sharding.num_row_shards(self.mesh) // hosts.count)
        self.few_rows = max(shards, self.own_rows // _FEW // shards * shards)
        if cuts and self._suits_a_cache(model_config):
            self.own_rows = min(self.own_rows, max(1, _CPU_SLOTS // max(settings.row_lengths)))
            self.few_rows = self.own_rows

    @property
    def platform(self) -> str:
        return str(self.mesh.devices.flat[0].platform)

    def _suits_a_cache(self, model_config: ModelConfig) -> bool:
        small = flops.body_parameters(model_config) <= _CPU_PARAMETERS
        return small and self.platform == "cpu" and self.mesh.size == 1

    def put_rows(self, rows: Any, start: int, size: int) -> Any:
        """Moves `size` of this host's rows to the devices; in a pytree, of which every array is cut."""
        part = jax.tree.map(lambda x: x[start : start + size], rows)
        return sharding.place_rows(part, self.rows, self.num_hosts)

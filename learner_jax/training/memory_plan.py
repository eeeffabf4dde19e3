"""What a plan of device memory says: tenants of a program, and the programs of a train step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from learner_jax.runtime import WeirError


class PlanError(WeirError, ValueError):
    """What was asked to be planned can't be."""

    can_heal = False


@dataclass(frozen=True)
class Tenant:
    """Something that takes memory of a device.

    Attributes:
      size: bytes per device.
      note: what it is, and in which dtype.
      fusible: whether a backend that fuses elementwise operations over whole leaves, as XLA's for GPUs and TPUs, need
        not hold it; that is not verified here.
    """

    name: str
    size: int
    note: str
    fusible: bool = False


@dataclass(frozen=True)
class Program:
    """One compiled program and what lies on the device beside it.

    Attributes:
      own: what XLA's `memory_analysis` counts: arguments, outputs that are no donated arguments, temporaries.
      beside: what the loop keeps on the device while the program runs.
      phase: the moment at which the program is at its fullest.
    """

    name: str
    own: tuple[Tenant, ...]
    beside: tuple[Tenant, ...]
    phase: str

    @property
    def own_bytes(self) -> int:
        return total_bytes(self.own)

    @property
    def total_bytes(self) -> int:
        return self.own_bytes + total_bytes(self.beside)

    @property
    def fused_bytes(self) -> int:
        """The total without what a fusing backend need not hold."""
        return self.total_bytes - total_bytes(tenant for tenant in self.own if tenant.fusible)


@dataclass(frozen=True)
class Plan:
    """What a train step takes of one device."""

    num_parameters: int
    num_devices: int
    gradients: Program
    update: Program

    @property
    def peak_bytes(self) -> int:
        """Of the fuller program."""
        return max(self.gradients.total_bytes, self.update.total_bytes)

    @property
    def fused_peak_bytes(self) -> int:
        return max(self.gradients.fused_bytes, self.update.fused_bytes)


def total_bytes(tenants: Iterable[Tenant]) -> int:
    """Bytes per device of all of them."""
    return sum(tenant.size for tenant in tenants)

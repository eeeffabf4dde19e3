"""Settings of the learner's devices and processes: the mesh, and the hosts that make up one learner."""

from __future__ import annotations

from pydantic import Field, model_validator

from learner_jax.contracts import Settings

#: environment variable by which the hosts of one learner know each other
HOSTS_SECRET = "WEIR_HOSTS_SECRET"


class MeshSettings(Settings):
    """Sizes of the device mesh axes; -1 takes whatever devices are left."""

    data: int = Field(1, ge=-1, description="devices that each hold a copy of the sharded weights; -1 takes those left")
    fsdp: int = Field(-1, ge=-1, description="devices that weights and rows are sharded over; -1 takes those left")
    tensor: int = Field(1, ge=-1, description="devices that each layer's matrices are split over; -1 takes those left")

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    @model_validator(mode="after")
    def _sizes_can_be(self) -> MeshSettings:
        if 0 in self.sizes or self.sizes.count(-1) > 1:
            raise ValueError(
                f"data, fsdp and tensor are {list(self.sizes)}: every size must be at least 1, and at most one may be "
                f"-1, which takes the devices that are left"
            )
        return self


class HostsSettings(Settings):
    """The processes that make up one learner, and how they find each other; one configuration serves all of them."""

    count: int = Field(1, gt=0, description="processes; more than 1 train as one learner")
    index: int = Field(
        -1, ge=-1, description="which of them this is, given per process; -1 asks SLURM, MPI or JobSet's environment"
    )
    coordinator: str = Field(
        "",
        pattern=r"^(\S+:[0-9]{1,5})?$",
        description="address:port of process 0; empty asks the same environment",
    )
    connect_timeout_s: float = Field(300, ge=1, description="seconds; give up when not all processes came within them")
    heartbeat_timeout_s: float = Field(
        60, ge=1, description="seconds; a process silent for so long is dead, and all others end"
    )

    @model_validator(mode="after")
    def _index_counts(self) -> HostsSettings:
        if self.index >= self.count:
            raise ValueError(f"index is {self.index}, expected 0 to {self.count - 1}: count is {self.count}")
        return self

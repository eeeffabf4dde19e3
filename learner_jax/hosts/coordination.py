"""JAX's coordination among hosts: its service, client and CPU collectives, set up where a lost host can't abort us.

`jax.distributed.initialize` listens on every address, asks the environment's proxies, and leaves no way to bind the
CPU's collectives to an address. So this does what it does, by the same private names; Orbax reads them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax._src import clusters, distributed, xla_bridge
from jax._src.lib import _jax  # type: ignore[attr-defined]

from learner_jax.hosts.tunnel import socket_path
from learner_jax.hosts.watch import Joined
from learner_jax.hosts.wire import HostError

#: JAX aborts a process without a reason; its own bounds only have to come after ours.
_LATER = 10
_LATER_S = 600


def found_in_cluster(
    coordinator: str | None, count: int, index: int | None, devices: Sequence[int] | None, timeout_s: float
) -> tuple[str | None, int | None, Sequence[int] | None]:
    """Coordinator, index and devices of this process; what is None is looked up in SLURM, MPI, or what else JAX knows.

    Raises:
      ValueError, RuntimeError: as that environment's detection does.
    """
    address, _, found, local = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, count, index, devices, None, round(timeout_s)
    )
    return address, found, local


def start(joined: Joined, index: int, count: int, devices: Sequence[int] | None, *, heartbeat_s: float) -> None:
    """Connects JAX to the coordination service, and starts that on host 0.

    Args:
      joined: the way to the other hosts.
      devices: local ids of the devices that this process takes; None for all.
      heartbeat_s: after which the watch gives a host up.
    Raises:
      RuntimeError: JAX can't.
    """
    if xla_bridge.backends_are_initialized():
        raise RuntimeError("JAX was used before the hosts joined")
    if devices:
        visible = ",".join(map(str, devices))
        jax.config.update("jax_cuda_visible_devices", visible)
        jax.config.update("jax_rocm_visible_devices", visible)
    state: Any = distributed.global_state
    socket = f"unix:{socket_path(joined.folder)}"
    later_s = _LATER_S + round(_LATER * heartbeat_s)
    if index == 0:
        state.service = _jax.get_distributed_runtime_service(
            socket, count, heartbeat_timeout=later_s, shutdown_timeout=later_s
        )
    state.client = _jax.get_distributed_runtime_client(
        socket,
        index,
        init_timeout=later_s,
        shutdown_on_destruction=False,
        use_compression=True,
        heartbeat_timeout=later_s,
    )
    state.client.connect()
    state.process_id, state.num_processes, state.coordinator_address = index, count, socket
    if jax.config.values["jax_cpu_collectives_implementation"] == "gloo":
        xla_bridge.register_backend_factory("cpu", partial(_cpu_client, joined.address), priority=0, fail_quietly=False)


def is_started() -> bool:
    """Whether this process has joined others."""
    return distributed.global_state.client is not None


def _cpu_client(address: str) -> Any:
    """JAX's CPU backend, with collectives that listen at `address` and not at what the machine's name stands for."""
    collectives = _jax.make_gloo_tcp_collectives(distributed_client=distributed.global_state.client, hostname=address)
    return xla_bridge.make_cpu_client(collectives)


class CoordinationService:
    """The key-value store of JAX's coordination service; see `learner_jax.hosts.hosts.KeyValues`.

    Raises:
      HostError: the service is out of reach.
    """

    def __init__(self) -> None:
        assert distributed.global_state.client is not None
        self._client: Any = distributed.global_state.client

    def put(self, key: str, value: bytes) -> bool:
        try:
            self._client.key_value_set_bytes(key, value)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                return False
            raise _out_of_reach(error) from error
        return True

    def wait(self, key: str, timeout_s: float) -> bytes | None:
        try:
            value: bytes = self._client.blocking_key_value_get_bytes(key, max(1, round(timeout_s * 1000)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise _out_of_reach(error) from error
        return value

    def delete(self, key: str) -> None:
        try:
            self._client.key_value_delete(key)
        except jax.errors.JaxRuntimeError as error:
            raise _out_of_reach(error) from error


def _out_of_reach(error: Exception) -> HostError:
    return HostError(f"the coordination service of JAX is out of reach: {error}")

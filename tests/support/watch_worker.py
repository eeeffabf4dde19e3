"""A host that waits for the others in one place for ever, for tests: python -m tests.support.watch_worker JSON.

It joins, prints "ready", and waits where it was told to: for a value, in a collective, in a barrier of Orbax, or in a
save of a checkpoint. The host that is to end sleeps meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from learner_jax.checkpoints.manifest import CheckpointError
from learner_jax.hosts.hosts import Hosts, connect, ends_at_once
from learner_jax.settings.learner import HostsSettings
from tools.assembly import clear_errors

_LONG_S = 600


def sums() -> Any:
    """A program whose result needs all hosts, and its argument."""
    mesh = Mesh(np.array(jax.devices()), ("hosts",))
    sharding = NamedSharding(mesh, PartitionSpec("hosts"))
    values = jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.ones(1, np.float32))
    return jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec())), values


def wait(place: str, hosts: Hosts, directory: Path, silent: list[int]) -> None:
    total, values = sums()
    assert float(total(values)) == hosts.count
    manager = ocp.CheckpointManager(directory / "checkpoints") if place == "save" else None
    hosts.barrier("that all are there")
    print("ready", flush=True)
    if hosts.index in silent:
        time.sleep(_LONG_S)
    match place:
        case "value":
            hosts.gather(hosts.index, "something")
        case "collective":
            float(total(values))
        case "barrier":
            multihost_utils.sync_global_devices("something")
        case "save":
            assert manager is not None
            try:
                manager.save(1, args=ocp.args.StandardSave({"values": values}))
                manager.wait_until_finished()
            except Exception as error:
                raise CheckpointError(f"checkpoint 1 could not be written: {error}") from error
        case "end":
            return
        case "raise":
            raise CheckpointError("raised here")
        case "hang":
            time.sleep(_LONG_S)


def main() -> None:
    told = json.loads(sys.argv[1])
    settings = HostsSettings(**told["settings"]["hosts"])
    timeout_s = told.get("timeout_s", _LONG_S)
    with ends_at_once(), clear_errors(), connect(settings, timeout_s=timeout_s, facts=told.get("facts")) as hosts:
        place = told.get("places", {}).get(str(hosts.index), told["place"])
        wait(place, hosts, Path(told["directory"]), told.get("silent", []))


if __name__ == "__main__":
    main()

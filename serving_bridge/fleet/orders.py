"""What an operator wants of a running fleet, and what its controller answers: two small files in the registry's folder.

The file of orders says how things shall be, not what to do: a controller that starts anew finds it and keeps to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from learner_jax.contracts import MAX_RECORD_TEXT, quoted
from serving_bridge.processes import sole
from serving_bridge.routing import Seconds, Text, read_record, write_file

#: More than one machine could ever hold.
_Replicas = Annotated[int, msgspec.Meta(ge=0, le=10_000)]


class Orders(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Written by `tools.fleet`, read by the controller.

    Attributes:
      order_id: of the last order, for its answer.
      replicas: how many there shall be; None for serving.replicas.
      restart_id: names the last rolling restart that was ordered; servers started later have had it.
    """

    order_id: Text
    replicas: _Replicas | None = None
    restart_id: Text = ""


class FleetStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Written by the controller, read by `tools.fleet`.

    Attributes:
      wanted: replicas that there shall be.
      order_id: of the last order that was taken note of.
      refused: why that order is not carried out, or empty.
      doing: what remains to be done to carry it out, or empty.
      heartbeat_s: when this was written, seconds since the epoch by the controller's clock.
    """

    fleet: Text
    wanted: _Replicas
    order_id: Text
    refused: Text
    doing: Text
    heartbeat_s: Seconds


class OrderBook:
    """Orders to, and answers of, one fleet.

    Args:
      folder: that of the replica registry.
    """

    def __init__(self, folder: Path, fleet: str):
        self._orders = folder / "fleets" / f"{fleet}.orders.json"
        self._status = folder / "fleets" / f"{fleet}.status.json"

    def order(self, order_id: str, *, replicas: int | None = None, restart: bool = False) -> Orders:
        """Writes an order; what earlier ones said about other things stays."""
        before = self.orders() or Orders("")
        orders = Orders(
            order_id,
            before.replicas if replicas is None else replicas,
            order_id if restart else before.restart_id,
        )
        write_file(self._orders, msgspec.json.encode(orders))
        return orders

    def orders(self) -> Orders | None:
        return read_record(self._orders, Orders)

    def settle(self, order_id: str, replicas: int) -> None:
        """Takes back what a refused order said of the number of replicas, so that no later controller finds it."""
        orders = self.orders()
        if orders is not None and orders.order_id == order_id:
            write_file(self._orders, msgspec.json.encode(Orders(order_id, replicas, orders.restart_id)))

    def report(self, status: FleetStatus) -> None:
        short = {name: quoted(getattr(status, name), MAX_RECORD_TEXT) for name in ("refused", "doing")}
        write_file(self._status, msgspec.json.encode(msgspec.structs.replace(status, **short)))

    def status(self) -> FleetStatus | None:
        return read_record(self._status, FleetStatus)

    def clear_status(self) -> None:
        """The controller ends."""
        self._status.unlink(missing_ok=True)


@contextmanager
def sole_controller(folder: Path, fleet: str) -> Iterator[None]:
    """Holds the name of a fleet while the block runs; the hold ends with the process, however that ends.

    Raises:
      InUseError: another controller of that name runs.
    """
    with sole(folder / "fleets" / f"{fleet}.lock", f"fleet {fleet}", hint="use another --name"):
        yield


def known_fleets(folder: Path) -> list[str]:
    """Names of the fleets that have a controller now, or had one that did not end in order."""
    return sorted(path.name.removesuffix(".status.json") for path in (folder / "fleets").glob("*.status.json"))

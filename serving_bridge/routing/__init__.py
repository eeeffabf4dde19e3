"""Which replicas there are, and which one takes a request."""

from serving_bridge.routing.cells import CellState, SpillPolicy, cells_of, choose_cell, limit_shares, may_try_another
from serving_bridge.routing.dispatch import Dispatcher, NoReplicaError
from serving_bridge.routing.lifecycle import RUNNING, TAKES_REQUESTS, Event, State, advance
from serving_bridge.routing.points import point_of
from serving_bridge.routing.registry import (
    KEYS_FOLDER,
    LEAVING,
    Name,
    ReplicaRegistry,
    ReplicaRow,
    Seconds,
    Text,
    read_record,
    registry_folder,
    write_file,
)

__all__ = [
    "KEYS_FOLDER",
    "LEAVING",
    "RUNNING",
    "TAKES_REQUESTS",
    "CellState",
    "Dispatcher",
    "Event",
    "Name",
    "NoReplicaError",
    "ReplicaRegistry",
    "ReplicaRow",
    "Seconds",
    "SpillPolicy",
    "State",
    "Text",
    "advance",
    "cells_of",
    "choose_cell",
    "limit_shares",
    "may_try_another",
    "point_of",
    "read_record",
    "registry_folder",
    "write_file",
]

"""Which replicas there are, and which one takes a request."""

from serving_bridge.routing.dispatch import Dispatcher, NoReplicaError
from serving_bridge.routing.lifecycle import RUNNING, TAKES_REQUESTS, Event, State, advance
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
    "Dispatcher",
    "Event",
    "Name",
    "NoReplicaError",
    "ReplicaRegistry",
    "ReplicaRow",
    "Seconds",
    "State",
    "Text",
    "advance",
    "read_record",
    "registry_folder",
    "write_file",
]

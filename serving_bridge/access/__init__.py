"""Who may ask a replica for what."""

from serving_bridge.access.gate import (
    ALSO_OPEN,
    BASE_URL,
    INFERENCE_TOKEN,
    MAX_VERSION,
    Entry,
    Gate,
    Generate,
    Refused,
    Route,
    without_request_id,
)
from serving_bridge.access.keys import FleetKeys, FreshKeys, Keys, new_start
from serving_bridge.access.lease import Lease
from serving_bridge.access.probes import CONTROL_TOKEN, batch_of, probe_ids

__all__ = [
    "ALSO_OPEN",
    "BASE_URL",
    "CONTROL_TOKEN",
    "INFERENCE_TOKEN",
    "MAX_VERSION",
    "Entry",
    "FleetKeys",
    "FreshKeys",
    "Gate",
    "Generate",
    "Keys",
    "Lease",
    "Refused",
    "Route",
    "batch_of",
    "new_start",
    "probe_ids",
    "without_request_id",
]

"""Who may ask a replica for what."""

from serving_bridge.access.fence import FENCING_HEADER, ROUND_ROUTE, SERVE_ROUTE, SWAP_ROUTE, Fence
from serving_bridge.access.gate import (
    ALSO_OPEN,
    BASE_URL,
    INFERENCE_TOKEN,
    MAX_VERSION,
    UNPROVEN,
    Entry,
    Gate,
    Generate,
    Route,
    Sampling,
    Serve,
    Swap,
    WorkerCall,
    without_request_id,
)
from serving_bridge.access.keys import AccessError, FleetKeys, FreshKeys, Keys, kept_secret, new_start
from serving_bridge.access.lease import Lease
from serving_bridge.access.probes import CONTROL_TOKEN, batch_of, probe_ids
from serving_bridge.access.refusals import Refused

__all__ = [
    "ALSO_OPEN",
    "BASE_URL",
    "CONTROL_TOKEN",
    "FENCING_HEADER",
    "INFERENCE_TOKEN",
    "MAX_VERSION",
    "ROUND_ROUTE",
    "SERVE_ROUTE",
    "SWAP_ROUTE",
    "UNPROVEN",
    "AccessError",
    "Entry",
    "Fence",
    "FleetKeys",
    "FreshKeys",
    "Gate",
    "Generate",
    "Keys",
    "Lease",
    "Refused",
    "Route",
    "Sampling",
    "Serve",
    "Swap",
    "WorkerCall",
    "batch_of",
    "kept_secret",
    "new_start",
    "probe_ids",
    "without_request_id",
]

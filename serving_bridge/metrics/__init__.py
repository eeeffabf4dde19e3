"""What each process serves to Prometheus: one table of metrics, filled from the events that the process writes."""

from serving_bridge.metrics.exporter import Exporter, ExporterError, advertised, port_of
from serving_bridge.metrics.latest import Latest
from serving_bridge.metrics.metric import Metric
from serving_bridge.metrics.replicas import Replica, ReplicaPages
from serving_bridge.metrics.table import METRICS, ROLES, Role
from serving_bridge.metrics.targets import write_target

__all__ = [
    "METRICS",
    "ROLES",
    "Exporter",
    "ExporterError",
    "Latest",
    "Metric",
    "Replica",
    "ReplicaPages",
    "Role",
    "advertised",
    "port_of",
    "write_target",
]

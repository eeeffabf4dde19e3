"""The fleet's controller: replicas that stay up, on the newest verified weights."""

from serving_bridge.fleet.controller import Fleet
from serving_bridge.fleet.further_host import FurtherHost
from serving_bridge.fleet.meeting import Meeting, MeetingPoint
from serving_bridge.fleet.orders import FleetStatus, OrderBook, Orders, known_fleets, sole_controller
from serving_bridge.fleet.replica import Replica
from serving_bridge.fleet.weight_round import RoundOutcome, run_round

__all__ = [
    "Fleet",
    "FleetStatus",
    "FurtherHost",
    "Meeting",
    "MeetingPoint",
    "OrderBook",
    "Orders",
    "Replica",
    "RoundOutcome",
    "known_fleets",
    "run_round",
    "sole_controller",
]

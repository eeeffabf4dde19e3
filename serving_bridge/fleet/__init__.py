"""The fleet's controller: replicas that stay up, on verified weights: the newest, or what a registry's aliases name."""

from serving_bridge.fleet.alias_follower import AliasFollower, served_by
from serving_bridge.fleet.controller import Fleet
from serving_bridge.fleet.further_host import FurtherHost
from serving_bridge.fleet.meeting import Meeting, MeetingPoint
from serving_bridge.fleet.orders import FleetStatus, OrderBook, Orders, known_fleets, sole_controller
from serving_bridge.fleet.replica import Replica
from serving_bridge.fleet.weight_round import RoundOutcome, run_round

__all__ = [
    "AliasFollower",
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
    "served_by",
    "sole_controller",
]

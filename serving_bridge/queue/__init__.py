"""The durable queue between rollout workers and the learner."""

from serving_bridge.queue.bounds import QueueBounds, QueueError, QueueFullError
from serving_bridge.queue.queue import LeaseLostError, TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from serving_bridge.queue.states import ENDED
from serving_bridge.queue.view import Overview, Progress

__all__ = [
    "ENDED",
    "LeaseLostError",
    "Overview",
    "Pace",
    "Progress",
    "QueueBounds",
    "QueueError",
    "QueueFullError",
    "TrajectoryQueue",
]

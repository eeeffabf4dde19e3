"""The durable queue between rollout workers and the learner."""

from serving_bridge.queue.admin import QueueAdmin
from serving_bridge.queue.bounds import QueueBounds, QueueError, QueueFullError
from serving_bridge.queue.consumer import LeaseLostError, QueueConsumer
from serving_bridge.queue.glance import Glance, glance
from serving_bridge.queue.mixed import MixedSource, online_run
from serving_bridge.queue.problems import ProblemOutcome
from serving_bridge.queue.producer import QueueProducer
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.rewards import QueueRewards, RewardsOverview
from serving_bridge.queue.staleness import Pace
from serving_bridge.queue.states import ENDED
from serving_bridge.queue.view import Overview, Progress
from serving_bridge.queue.waiting import Delay, Settled, WaitingGroup

__all__ = [
    "ENDED",
    "Delay",
    "Glance",
    "LeaseLostError",
    "MixedSource",
    "Overview",
    "Pace",
    "ProblemOutcome",
    "Progress",
    "QueueAdmin",
    "QueueBounds",
    "QueueConsumer",
    "QueueError",
    "QueueFullError",
    "QueueProducer",
    "QueueRewards",
    "RewardsOverview",
    "Settled",
    "TrajectoryQueue",
    "WaitingGroup",
    "glance",
    "online_run",
]

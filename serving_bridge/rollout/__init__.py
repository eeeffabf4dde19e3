"""The rollout worker: prompts in, judged groups out."""

from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.carried_on import awaits_work
from serving_bridge.rollout.episodes import Episode, EpisodeError
from serving_bridge.rollout.heldout_episodes import HeldOutEpisodes, plays_episodes
from serving_bridge.rollout.measured import LeaveOut
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.worker import RolloutWorker, RunIdentity

__all__ = [
    "AgentPlayer",
    "Episode",
    "EpisodeError",
    "HeldOutEpisodes",
    "LeaveOut",
    "Player",
    "Prefix",
    "RolloutWorker",
    "RunIdentity",
    "Sampler",
    "awaits_work",
    "plays_episodes",
]

"""The hosts of one learner: how they meet, agree, watch each other and end together."""

from learner_jax.hosts.hosts import Hosts, connect, ends_at_once
from learner_jax.hosts.shared_folders import require_shared

__all__ = ["Hosts", "connect", "ends_at_once", "require_shared"]

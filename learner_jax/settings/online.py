"""Settings of online data: what users were answered, with a bound on staleness and a share of a batch of its own."""

from __future__ import annotations

from pydantic import Field

from learner_jax.contracts import Settings


class OnlineSettings(Settings):
    """Groups of recorded sessions (`source = online`), beside those of the rollout workers."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a step's groups that are online, at most; rollouts take the places of missing ones",
    )
    max_staleness: int = Field(
        64, ge=0, le=2**31 - 1, description="versions that an online group may lag when it is trained on"
    )

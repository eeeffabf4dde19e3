"""What a job must know of the engine that its replicas run: how long it takes, and what can be made wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

EngineName = Literal["fake", "vllm"]


@dataclass(frozen=True)
class EngineTraits:
    """One kind of engine.

    Attributes:
      module: of its server.
      disturbances: what can be made wrong inside it.
      is_told: of them, which only an engine that was made for it does; another one's processes get signals.
      settings: of the job, where they differ from `job.toml`.
      start_s: bound on the time from the job's start to its first steps.
      recover_s: bound on the time from the end of a seed's faults until the job works again.
      crash_s: a crash point, or a checkpoint, that does not come for so long is not waited for any more.
      take_over_s: what a second learner may take to start and take over, and the one that it replaces to notice.
    """

    module: str
    disturbances: tuple[str, ...]
    is_told: bool = False
    settings: tuple[str, ...] = ()
    start_s: float = 120.0
    recover_s: float = 60.0
    crash_s: float = 20.0
    take_over_s: float = 60.0


ENGINES: Mapping[EngineName, EngineTraits] = {
    "fake": EngineTraits(
        module="tools.testing.fake_vllm.server",
        disturbances=("hangs", "slow", "garbage", "failures", "aborts", "dies", "breaks"),
        is_told=True,
    ),
    # It takes 25 to 60 s to start on two cores, and then all that waits for an answer waits with it.
    "vllm": EngineTraits(
        module="vllm.entrypoints.openai.api_server",
        disturbances=("hangs", "slow", "dies"),
        settings=(
            "serving.start_timeout_s=300",
            "serving.min_healthy_s=600",
            "serving.hang_s=60",
            "serving.update_timeout_s=15",
            "rollout.request_timeout_s=20",
            "rollout.episode_timeout_s=60",
            "rollout.max_wait_s=300",
            "learner.max_wait_s=300",
        ),
        start_s=300.0,
        recover_s=240.0,
        crash_s=120.0,
        take_over_s=120.0,
    ),
}

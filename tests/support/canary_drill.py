"""The canary under drill: models that get worse, scores from beside the gateway, and its commands as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from serving_bridge.canary import Observation
from tests.conftest import REPOSITORY
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tests.support.letters import letter_model
from tests.support.users_fleet import Drill

#: An answer that is lost with its replica is asked for once more.
FALLBACK = '[fallback]\nunavailable = ["retry"]\nretry_wait_s = 0.2\n'
LIMIT_S = 400.0


def noised(folder: Path, noise: float) -> Path:
    """The model of seed 0, with normal noise of this standard deviation on every weight."""
    import torch

    model = letter_model(folder, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += noise * torch.randn(weights.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


class Scorer:
    """Scores users' answers from beside the gateway: the share of different pairs of neighbouring letters."""

    def __init__(self, world: CanaryWorld) -> None:
        self._world, self._waiting = world, list[Observation]()

    def told(self, answer: Mapping[str, Any]) -> None:
        text, weir = answer["choices"][0]["message"]["content"] or "", answer["weir"]
        pairs, versions = list(pairwise(text)), {span["version"] for span in weir["policy_versions"][0]}
        if not pairs or len(versions) != 1 or weir["arm"] not in ("canary", "stable"):
            return
        measures = {"score.pairs": len(set(pairs)) / len(pairs)}
        self._waiting.append(
            Observation(
                NAMESPACE, "score", weir["arm"], versions.pop(), "drill", answer["id"], measures, at_s=time.time()
            )
        )

    async def write(self) -> None:
        """Writes what came, again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(0.3)
            batch, self._waiting = self._waiting, []
            self._world.log.add(batch)


class CanaryPlace:
    """The registry under the drill, and the canary's commands on it.

    Args:
      database: of the registry, past what the commands reach it by; "" for the files in its folder.
    """

    def __init__(self, drill: Drill, policy: str, database: str = "") -> None:
        self.drill, self.root = drill, drill.folder / "registry"
        self.world = CanaryWorld(database, database) if database else CanaryWorld.of(self.root)
        self.lives: list[str] = []
        (drill.folder / "policy.toml").write_text(policy)

    async def controller(self, crash_at: str = "", *more: str) -> asyncio.subprocess.Process:
        self.lives.append(crash_at or "none")
        with (self.drill.folder / f"controller{len(self.lives)}.out").open("wb") as to:
            return await asyncio.create_subprocess_exec(
                *self._command("run", *more),
                stdout=to, stderr=asyncio.subprocess.STDOUT, cwd=REPOSITORY, env=_environment(crash_at),
            )  # fmt: skip

    async def killed(self, crash_at: str, *more: str, after: Callable[[], Any] = lambda: None) -> None:
        """A controller that kills itself there; then alias, split, stage and rollout say the same."""
        process = await self.controller(crash_at, *more)
        try:
            if more:
                await asyncio.sleep(4.0)
            await asyncio.to_thread(after)
            assert await asyncio.wait_for(process.wait(), LIMIT_S) == -signal.SIGKILL, crash_at
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert self.disagreement() == "", crash_at

    def tool(self, command: str, *more: str, crash_at: str = "") -> str:
        ended = subprocess.run(
            self._command(command, *more), capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
            env=_environment(crash_at), check=False,
        )  # fmt: skip
        assert ended.returncode == (-signal.SIGKILL if crash_at else 0), ended.stderr
        return ended.stdout

    def disagreement(self) -> str:
        """What of alias, split, stage and rollout does not say the same; "" for nothing."""
        phase, canary, stable, share, shadow = self.world.agreement()
        rollout = self.world.rollouts.latest(NAMESPACE)[0]
        step, number = rollout.policy.steps[rollout.state.step], rollout.number
        if rollout.is_open:
            stage = "canary" if step.share else "shadow"
            expected = (number, rollout.stable, rollout.policy.share_of(step), step.shadow, stage)
        else:
            promoted = phase == "promoted"
            expected = (None, number if promoted else rollout.stable, 0.0, 0.0, "stable" if promoted else "rolled_back")
        found = (canary, stable, share, shadow, self.world.stage(number))
        return "" if found == expected else f"{phase}: {found}, expected {expected}"

    def _command(self, command: str, *more: str) -> list[str]:
        place = ["--database", self.drill.database] if self.drill.database else []
        return [sys.executable, "-m", "tools.canary", command, str(self.root), *place, *more]

    async def until(self, what: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
        began_s = time.monotonic()
        while not what():
            assert time.monotonic() - began_s < limit_s, self.tool("status")
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s


def _environment(crash_at: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "WEIR_CRASH_AT")}
    return kept | ({"WEIR_CRASH_AT": crash_at} if crash_at else {})

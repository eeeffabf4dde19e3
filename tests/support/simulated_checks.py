"""The checks of a simulated run that did not take place, and what a test does to its rows and files in its stead."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from learner_jax.contracts import encode_group
from serving_bridge.queue import QueueBounds
from serving_bridge.weights import VersionWriter, WeightStore
from tests.support.trajectories import make_group
from tools.testing.simulate.checks import RunChecks
from tools.testing.simulate.disk import Disk
from tools.testing.simulate.file_checks import FileChecks
from tools.testing.simulate.loop import Process, SimulatedLoop
from tools.testing.simulate.queue_checks import QueueChecks
from tools.testing.simulate.setting import draw_setting
from tools.testing.simulate.shared import SharedDatabase
from tools.testing.simulate.violations import Violations
from tools.testing.simulate.weights import tensors_of


class Bench:
    """The checks of a run with nothing in it: one version served, the first group put by worker-0."""

    def __init__(self, folder: Path) -> None:
        self.violations = Violations()
        drawn = draw_setting(random.Random(0))
        pace = replace(drawn.pace, max_staleness=1, groups_per_step=1)
        self.setting = replace(drawn, pace=pace, bounds=QueueBounds(max_groups=1))
        self.blobs, self.weights, self.checkpoints = folder / "blobs", folder / "weights", folder / "checkpoints"
        for path in (self.blobs, self.weights, self.checkpoints):
            path.mkdir()
        self.served: set[int] = set()
        self.files = FileChecks(
            self.violations,
            blobs=self.blobs,
            weights=self.weights,
            checkpoints=self.checkpoints,
            in_use=lambda: self.served,
        )
        self.disk = self.files.disk = Disk(folder, self.files.effect)
        self.database, self.durable = SharedDatabase(), set[str]()
        self.rows = QueueChecks(self.violations, self.setting, self.database.real, self.files, lambda: self.durable)
        self.run = RunChecks(self.violations, pace, self.files)
        loop = self.loop = SimulatedLoop()
        self.learner, self.other_learner = Process("learner", loop), Process("learner", loop)
        self.workers = [Process(f"worker-{index}", loop) for index in range(2)]
        self.files.identities[1] = 7
        self.commit(self.learner, "UPDATE progress SET value = 1 WHERE key IN ('consumer_epoch', 'trained_version')")

    def commit(self, process: Process, *statements: str, synced: bool = True) -> None:
        """One transaction of a process."""
        self.database.write(lambda session: [session.execute(each) for each in statements], synced=synced)
        self.rows.committed(process, is_synced=synced)

    def claim(self, prompt: int = 0, worker: int = 0, expires_s: float = 2e9) -> None:
        self.commit(
            self.workers[worker],
            f"INSERT INTO claims VALUES ({prompt}, 'worker-{worker}', {expires_s})",
            f"UPDATE progress SET value = {prompt + 1} WHERE key = 'next_prompt'",
        )

    def put(self, prompt: int = 0, *, version: int = 1, said: int | None = None, more: str = "") -> None:
        """A group in a row, and the end of its claim."""
        payload = encode_group(make_group(f"run/{prompt}", version=version)).hex()
        said = version if said is None else said
        self.commit(
            self.workers[0],
            "INSERT INTO groups (group_id, prompt_index, state, oldest_version, created_s, num_bytes) "
            f"VALUES ('run/{prompt}', {prompt}, 'ready', {said}, 0, {len(payload) // 2})",
            f"INSERT INTO payloads SELECT sequence, x'{payload}' FROM groups WHERE group_id = 'run/{prompt}'",
            more or f"DELETE FROM claims WHERE prompt_index = {prompt}",
        )

    def move(self, state: str, process: Process | None = None, *more: str) -> None:
        self.commit(process or self.learner, f"UPDATE groups SET state = '{state}'", *more)

    def publish(self, version: int = 1) -> Path:
        """A version, with the store's own code; nothing is looked at."""
        writer = VersionWriter(WeightStore(self.weights, run="run"))
        assert writer.claim() == version
        writer.publish(tensors_of(version), step=0, golden=[], version=version)
        return self.weights / f"v{version:08d}"

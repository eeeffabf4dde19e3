"""What a restart goes on from is on the disk before the queue forgets what it holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from learner_jax.hosts import Hosts
from learner_jax.ledger import Ledger
from learner_jax.loop.saving import Saving
from tests.support.disk_effects import effects

__all__ = ["effects"]  # a fixture


def test_a_checkpoint_that_a_killed_life_left_to_the_system_is_synced_before_anything_is_forgotten(
    tmp_path: Path, effects: list[str]
):
    manifest = tmp_path / "2" / "manifest" / "metadata"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("none that can be read")
    synced: list[str] = []
    checkpoints: Any = SimpleNamespace(
        directory=tmp_path,
        bring_copy=lambda: None,
        latest_step=lambda: 2,
        check=lambda step: True,
        keep_copy=lambda step: None,
        reload=lambda: None,
    )
    source: Any = SimpleNamespace(take_over=lambda: 1, recover=lambda *_, **__: synced.extend(effects))
    saving = Saving(checkpoints, source, Hosts(), Ledger(), max_wait_s=1.0, log=lambda event, **_: None)
    saving.begin()
    saving.recover(None)
    assert {*synced} == {"sync metadata 21", "sync manifest", "sync 2", f"sync {tmp_path.name}"}
    assert synced[-1] == f"sync {tmp_path.name}"

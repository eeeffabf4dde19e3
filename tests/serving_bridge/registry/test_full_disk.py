"""A registry whose disk is full, wherever that shows: one error, nothing half done; it goes on once there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from learner_jax.runtime import WeirError
from serving_bridge.registry import Registry
from tests.support.registries import FILES, candidate, published
from tests.support.signing_keys import private_key
from tests.support.small_disks import Disk, make_disk

__all__ = ["make_disk"]  # a fixture

#: Pages that are left free: from none to enough for everything.
ROOM = (0, 2, 4, 8, 16, 24, 32, 64)
REASON = {"actor": "ann", "reason": "x"}


def _finds_room(step: Callable[[int], object], seed: int) -> bool:
    try:
        step(seed)
    except (WeirError, OSError) as error:  # the commands tell both in one line
        if "full" in str(error) or "No space left" in str(error):
            return False
        raise
    return True


def test_a_full_disk_leaves_a_whole_registry(make_disk: Callable[[Path, str], Disk], tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk", "2m")
    registry = Registry(disk.folder / "registry", timeout_s=0.5, files_wait_s=1.0)
    store, version = published(tmp_path / "run", 1)
    registry.register("default", store, version, FILES, candidate(), actor="ann")
    registry.move("default", {"stable": 1}, holder="ann", unproven=True, **REASON)
    key = private_key(tmp_path / "ann.pem")
    standing = registry.index.standing("default", 1)
    steps: dict[str, Callable[[int], object]] = {
        "register": lambda seed: registry.register(
            "default", *published(tmp_path / f"run-{seed}", seed), FILES, candidate(), actor="ann"
        ),
        "report": lambda seed: registry.add_report("default", 1, "r.json", b"%d" % seed, verdict="x", actor="ann"),
        "sign": lambda seed: registry.sign(standing, key, actor="ann"),
        "move": lambda seed: registry.move(
            "default", {"stable": 1, f"try-{seed}": 1}, holder="ann", unproven=True, **REASON
        ),
    }
    done: dict[str, list[bool]] = {name: [] for name in steps}
    for seed, pages in enumerate(ROOM, 2):
        for name, step in steps.items():
            disk.fill()
            disk.leave(pages)
            done[name].append(_finds_room(step, seed))
            disk.free()
            assert registry.placement("default").stable is not None
            assert registry.index.check_chain("default") == []
            assert [p for one in registry.index.entries("default") for p in registry.problems(one)] == []
    for name, found in done.items():
        assert found[0] is False, f"{name} found room where there is none"
        assert found[-1] is True, f"{name} had room"
    assert registry.index.aliases.current("default") == {"stable": 1} | {
        f"try-{seed}": 1 for seed, was_done in enumerate(done["move"], 2) if was_done
    }
    registry.close()

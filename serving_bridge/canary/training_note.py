"""What a rollout's end means for training: a file beside the registry that says whether the run should go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from learner_jax.runtime import write_durably
from serving_bridge.canary.rollouts import Rollout
from serving_bridge.registry import Entry

_FOLDER = "training"


class TrainingNote(msgspec.Struct, frozen=True):
    """Written by the controller, for whoever trains the model.

    Attributes:
      hold: whether training should wait: the newest rollout was taken back.
      run, version: that the candidate came from.
      good_run, good_version: of the stable entry, from which training may begin anew.
    """

    hold: bool
    reason: str
    rollout: int
    entry: int
    run: str
    version: int
    good_entry: int
    good_run: str
    good_version: int


def note_path(root: Path, namespace: str) -> Path:
    """Where a registry has the note of a namespace."""
    return root / _FOLDER / f"{namespace}.json"


def note_of(rollout: Rollout, entry: Callable[[int], Entry]) -> TrainingNote:
    """What follows from the newest rollout; `entry` gives an entry by its number."""
    hold = rollout.phase == "rolled_back" and rollout.asked != "released"
    good = rollout.number if rollout.phase == "promoted" else rollout.stable
    origin, good_origin = entry(rollout.number).origin, entry(good).origin
    return TrainingNote(
        hold,
        rollout.reason if hold else "",
        rollout.rollout,
        rollout.number,
        origin.run,
        origin.version,
        good,
        good_origin.run,
        good_origin.version,
    )


def write_note(root: Path, namespace: str, note: TrainingNote) -> bool:
    """Writes the note where it says something else by now; returns whether it did."""
    path, text = note_path(root, namespace), msgspec.json.encode(note)
    if path.is_file() and path.read_bytes() == text:
        return False
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(path, text)
    return True


def read_note(root: Path, namespace: str) -> TrainingNote | None:
    """The note of a namespace; None where no rollout has been."""
    path = note_path(root, namespace)
    return msgspec.json.decode(path.read_bytes(), type=TrainingNote) if path.is_file() else None

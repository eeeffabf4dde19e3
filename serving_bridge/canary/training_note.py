"""What a rollout's end means for training: a file beside the registry that says whether the run should go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from learner_jax.contracts import quoted
from learner_jax.runtime import read_plain, write_durably
from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.moves import Place
from serving_bridge.canary.rollouts import Rollout
from serving_bridge.registry import Entry

_FOLDER = "training"
_MAX_BYTES = 2**16


class TrainingNote(msgspec.Struct, frozen=True):
    """Written by the controller, for whoever trains the model.

    Attributes:
      hold: whether training should wait: the newest rollout was taken back.
      run, version: that the candidate came from.
      good_run, good_version: of the stable entry.
      anew: whether the candidate's run is to begin anew with that entry's weights.
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
    anew: bool = False


def note_path(root: Path, namespace: str) -> Path:
    """Where a registry has the note of a namespace."""
    return root / _FOLDER / f"{namespace}.json"


def note_of(rollout: Rollout, entry: Callable[[int], Entry]) -> TrainingNote:
    """What follows from the newest rollout; `entry` gives an entry by its number."""
    hold = rollout.holds_training
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
        rollout.begins_anew,
    )


def write_note(root: Path, namespace: str, note: TrainingNote) -> bool:
    """Writes the note where it says something else by now; returns whether it did."""
    path, text = note_path(root, namespace), msgspec.json.encode(note)
    if path.is_file() and path.read_bytes() == text:
        return False
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(path, text)
    return True


def note_newest(place: Place, root: Path) -> bool:
    """Writes what the newest rollout of a namespace means for training; returns whether the note changed."""
    newest = place.rollouts.latest(place.namespace)
    if not newest:
        return False
    note = note_of(newest[0], lambda number: place.index.standing(place.namespace, number).entry)
    return write_note(root, place.namespace, note)


def read_note(root: Path, namespace: str) -> TrainingNote | None:
    """The note of a namespace; None where no rollout has been.

    Raises:
      CanaryError: the registry's folder is not there, or the file is no note.
      PlainFileError, OSError: it is no plain file of an expected size, or can't be read.
    """
    try:
        payload = read_plain(root, note_path(root, namespace).name, max_bytes=_MAX_BYTES, inside=_FOLDER)
    except FileNotFoundError as error:
        if not root.is_dir():
            raise CanaryError(f"{root} is not there: expected the folder of a registry") from error
        return None
    try:
        return msgspec.json.decode(payload, type=TrainingNote)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CanaryError(f"{note_path(root, namespace)} is no note to training: {quoted(str(error))}") from error

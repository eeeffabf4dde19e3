"""Which checkpoint of a folder counts, and whether it is whole: one answer for everybody who reads one.

A checkpoint is a folder named by its step. Whole means: its manifest is of that step, every chunk of every array that
the manifest names is there, and every file has the hash that it was written with.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from learner_jax.checkpoints.arrays import TREE, array_problems
from learner_jax.checkpoints.hashes import HASHES, FileCheck, check_files
from learner_jax.checkpoints.manifest import ITEM, CheckpointError, Manifest, read_manifest

#: In the name of what was never committed.
TEMPORARY = ".orbax-checkpoint-tmp"
_DESCRIPTION = "_CHECKPOINT_METADATA"
#: What a checkpoint is renamed to that an ousted learner committed too late.
OUSTED = ".ousted"
#: ASCII digits without a leading zero: what a step is named. `str.isdigit` takes more.
_STEP = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
#: Items that may hold the train state or the parameters: Weir's, what Orbax calls an only item, and none.
_ITEMS = ("state", "default", "")


@dataclass(frozen=True)
class Found:
    """A checkpoint.

    Attributes:
      folder: where it is.
      item: the folder in it of the train state or the parameters.
      step: what its name says; None if the folder has another name.
    """

    folder: Path
    item: Path
    step: int | None

    @property
    def is_foreign(self) -> bool:
        """Whether Weir did not write it; nothing then vouches for its content."""
        return not _is_ours(self.folder)


def as_path(path: str | PathLike[str]) -> Path:
    """An absolute path; `~` is the home directory. Raises `CheckpointError` for a URL, which is no folder here."""
    if "://" in str(path):
        raise CheckpointError(f"{path} is a URL, expected a folder of this machine")
    return Path(path).expanduser().absolute()


def step_of(name: str) -> int | None:
    """The step that a folder's name says; None for another name."""
    return int(name) if _STEP.fullmatch(name) else None


def steps_in(directory: Path) -> list[int]:
    """Steps of which there is something in a folder of checkpoints, whole or not, in order.

    Raises:
      CheckpointError: it is no folder, or can't be read.
    """
    try:
        if not directory.exists():
            raise CheckpointError(f"checkpoint folder {directory} does not exist")
        return sorted(step for path in directory.iterdir() if (step := step_of(path.name)) is not None)
    except OSError as error:
        raise CheckpointError(f"checkpoint folder {directory} can't be read: {error}") from error


def unfinished(directory: Path) -> tuple[str, ...]:
    """Names of saves that were never committed, in a folder of checkpoints."""
    return tuple(sorted(path.name for path in directory.glob(f"*{TEMPORARY}*")))


def lives_in(directory: Path) -> dict[int, int | None]:
    """Step -> number of the learner's life that saved it; None where there is no readable manifest."""
    return {step: _life(directory / str(step)) for step in steps_in(directory)}


def ousted_steps(directory: Path) -> list[int]:
    """Steps that a learner committed after another one had taken over and gone on from an earlier step."""
    known = [(step, life) for step, life in lives_in(directory).items() if life is not None]
    return [step for step, life in known if any(earlier < step and later > life for earlier, later in known)]


def newest_step(directory: Path) -> int:
    """The newest step of a folder of checkpoints, whole or not; those of an ousted learner do not count.

    Raises:
      CheckpointError: there is none.
    """
    steps = steps_in(directory)
    if not steps:
        left = unfinished(directory)
        tail = f"; {', '.join(left)} there was never committed and can't be used" if left else ""
        raise CheckpointError(f"{directory} holds no checkpoint; expected <step>/state inside it{tail}")
    return max(set(steps) - set(ousted_steps(directory)))


def find_checkpoint(path: str | PathLike[str]) -> Found:
    """A checkpoint by its own folder, or the newest in a folder of them; `require_whole` says whether it can be used.

    Raises:
      CheckpointError: there is none.
    """
    folder = as_path(path)
    try:
        return _found(folder)
    except OSError as error:
        raise CheckpointError(f"checkpoint folder {folder} can't be read: {error}") from error


def _found(folder: Path) -> Found:
    if not folder.exists():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    if _item(folder) is not None or _is_ours(folder):
        step = step_of(folder.name)
    else:
        step = newest_step(folder)
        folder = folder / str(step)
    return Found(folder, _item(folder) or folder / "state", step)


def require_whole(found: Found, *, hashes: bool = True, say: Callable[[str], None] = lambda text: None) -> bool:
    """Refuses a checkpoint that is not whole; returns whether hashes vouch for its content.

    Args:
      hashes: whether to compare all files with their hashes, which reads all of them.
      say: told in a sentence where nothing vouches for the content.
    Raises:
      CheckpointError: the message names what is wrong, and the newest whole checkpoint before it.
    """
    checked = check(found.folder, step=found.step, hashes=hashes)
    if checked.problems:
        raise CheckpointError(_damaged(found, checked.problems))
    if not checked.hashed:
        why = (
            "its hashes were not checked, as asked for"
            if not hashes
            else "another program wrote it, without hashes"
            if found.is_foreign
            else f"it has no {HASHES}, as when a process is killed right after it committed"
        )
        say(f"unverified: checkpoint {found.folder}: {why}; a changed byte in it would not be noticed")
    return checked.hashed


def check(folder: Path, *, step: int | None, hashes: bool = True) -> FileCheck:
    """What is wrong with a checkpoint; problems are empty if it is whole.

    Args:
      step: that its manifest must be of; None if the folder's name does not say.
      hashes: whether to compare all files with their hashes, which reads all of them.
    """
    try:
        if not folder.is_dir():
            got = "a file" if folder.exists() else "nothing that can be reached"
            return FileCheck(hashed=False, problems=(f"{folder}: expected a folder, got {got}",))
        files = check_files(folder) if hashes else FileCheck(hashed=False)
        if files.problems:
            return files
        if _item(folder) is None:
            problem = f"{folder / 'state' / TREE}: expected a description of the arrays, but there is none"
            return FileCheck(files.hashed, (problem,))
        if not _is_ours(folder):
            return files
        return FileCheck(files.hashed, _manifest_problems(folder, step))
    except OSError as error:
        return FileCheck(hashed=False, problems=(f"{folder}: can't be read: {error}",))


def _manifest_problems(folder: Path, step: int | None) -> tuple[str, ...]:
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return (str(error),)
    if step is not None and manifest.position.completed_steps != step:
        got = manifest.position.completed_steps
        return (f"{folder / ITEM}: expected the manifest of step {step}, got that of step {got}",)
    if "state" not in manifest.arrays:
        return (f"{folder / ITEM}: expected a manifest with the item state, got {sorted(manifest.arrays)}",)
    return missing_arrays(folder, manifest)


def missing_arrays(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """What is missing of the arrays that a manifest names."""
    return tuple(problem for item, specs in manifest.arrays.items() for problem in array_problems(folder / item, specs))


def way_back(directory: Path, damaged: int) -> str:
    """The newest whole checkpoint before a damaged one, and how to go on from it."""
    steps = steps_in(directory)
    for older in reversed([step for step in steps if step < damaged and step not in ousted_steps(directory)]):
        found = check(directory / str(older), step=older)
        if found.problems:
            continue
        moves = " && ".join(
            f"mv {quoted} {quoted}.damaged"
            for step in steps
            if step > older
            for quoted in [shlex.quote(str(directory / str(step)))]
        )
        state = "intact" if found.hashed else "there and readable, but has no hashes to verify it"
        return (
            f"the newest before it that can be used is {directory / str(older)}, which is {state}: to go on from it, "
            f"run {moves}, then start the run again"
        )
    return "there is no intact one before it"


def _damaged(found: Found, problems: tuple[str, ...]) -> str:
    shown = "; ".join(problems[:3])
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    back = "" if found.step is None else f"; {way_back(found.folder.parent, found.step)}"
    return f"checkpoint {found.folder} is damaged: {shown}{more}{back}"


def _item(folder: Path) -> Path | None:
    """The folder of the train state or the parameters in a checkpoint; None if there is none."""
    with contextlib.suppress(PermissionError):
        for name in _ITEMS:
            if (folder / name / TREE).exists():
                return folder / name
    return None


def _is_ours(folder: Path) -> bool:
    """Whether Weir wrote a checkpoint, as far as what is left of it shows."""
    try:
        if (folder / ITEM).exists() or (folder / HASHES).exists():
            return True
        return ITEM in json.loads((folder / _DESCRIPTION).read_text())["item_handlers"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _life(folder: Path) -> int | None:
    try:
        return read_manifest(folder).position.life
    except CheckpointError:
        return None

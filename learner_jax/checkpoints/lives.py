"""Lives of a learner: each numbers its checkpoints, and puts aside what an earlier one committed too late."""

from __future__ import annotations

from pathlib import Path

from learner_jax.checkpoints.folder import OUSTED, lives_in, ousted_steps


def next_life(directory: Path, turn: int) -> int:
    """The number of a life that begins now: larger than those of all checkpoints in a folder.

    Args:
      turn: how many learners have taken over the queue by now.
    """
    return turn + max((life for life in lives_in(directory).values() if life is not None), default=0)


def oust(directory: Path, life: int, *, from_step: int | None = None) -> list[int]:
    """Puts checkpoints aside that learners of earlier lives committed too late; returns their steps.

    Those are the steps that a learner committed which another had replaced, and had gone on without them.

    Args:
      life: of the learner that is in charge.
      from_step: from here on the folder is to be empty for it, so that all steps of earlier lives are late.
    """
    late = set(ousted_steps(directory))
    if from_step is not None:
        lives = lives_in(directory).items()
        late |= {step for step, of in lives if step >= from_step and of is not None and of < life}
    for step in sorted(late):
        folder = directory / str(step)
        folder.rename(folder.with_name(f"{step}{OUSTED}.{life}"))
    return sorted(late)

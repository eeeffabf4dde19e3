"""What the policy made of each problem of late: written with a group, and only if the group is new."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from learner_jax.contracts import MAX_PROMPT_INDEX
from serving_bridge.database import Session

_MAX_ALIKE = 2**31 - 1


@dataclass(frozen=True)
class ProblemOutcome:
    """What a group of answers says of its problem.

    Attributes:
      key: of the problem, 64 bits with a sign.
      alike: its judged answers were all right, or all wrong.
    """

    key: int
    alike: bool


def record(session: Session, outcomes: Mapping[int, ProblemOutcome], new: Collection[int]) -> None:
    """Counts groups in a row that were alike.

    Args:
      outcomes: by the prompt's index.
      new: indices whose groups were new; others were counted when they were.
    """
    session.executemany(
        "INSERT INTO problems (key, alike, prompt_index) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
        f"alike = CASE WHEN excluded.alike = 0 THEN 0 WHEN problems.alike < {_MAX_ALIKE} THEN problems.alike + 1 "
        "ELSE problems.alike END, prompt_index = excluded.prompt_index",
        [(outcome.key, int(outcome.alike), index) for index, outcome in sorted(outcomes.items()) if index in new],
    )


def alike_groups(session: Session, key: int) -> int:
    """Groups in a row, up to the latest, that were alike; 0 for a problem without one, or a row that means nothing."""
    rows = session.execute("SELECT alike, prompt_index FROM problems WHERE key = ?", (key,))
    if not rows:
        return 0
    ((alike, prompt_index),) = rows
    return alike if alike > 0 and 0 <= prompt_index <= MAX_PROMPT_INDEX else 0

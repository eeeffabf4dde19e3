"""What a job left behind, read from its metrics and its database: who consumed what, and where every prompt ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving_bridge.queue import TrajectoryQueue

#: written by the harness when it went back to an older checkpoint, as a refusal of a damaged one says
WAY_BACK = "way_back"
#: name of the fault that lets two learners meet
RIVAL = "zombie learner"


@dataclass(frozen=True)
class Consumed:
    """One optimizer step, as the learner logged it once the queue knew of it.

    Attributes:
      version: trained on.
      oldest: policy version of each group's oldest token.
      life: of the learner, which two may be at the same time.
    """

    step: int
    version: int
    groups: tuple[str, ...]
    oldest: tuple[int, ...]
    life: int = 0


@dataclass(frozen=True)
class Begun:
    """A life of the learner begins after `step`: 0, or that of its checkpoint."""

    step: int
    life: int = 0


@dataclass(frozen=True)
class Committed:
    """A checkpoint of a step is on disk."""

    step: int


@dataclass(frozen=True)
class Saved:
    """A life saves a step's checkpoint: it will hold what that life consumed so far, and what it began from."""

    step: int
    life: int = 0


@dataclass(frozen=True)
class Rival:
    """The learner is stopped, wherever it is, and a second one is started: a save may end after that one has begun."""


@dataclass(frozen=True)
class RivalEnded:
    """The second learner is gone; the life that took over from it may be logged only now."""


@dataclass(frozen=True)
class WentBack:
    """A person (here the harness) put the checkpoints after `step` aside."""

    step: int


Entry = Consumed | Begun | Saved | Committed | Rival | RivalEnded | WentBack


@dataclass(frozen=True)
class Ledger:
    """The queue at the end.

    Attributes:
      groups: state by group id, of the groups that have a row.
      removed: groups that ended and whose rows are gone, by state.
      claimed: prompts that a worker still holds.
      next_prompt: prompts below it were given out.
    """

    groups: Mapping[str, str]
    removed: Mapping[str, int]
    claimed: frozenset[int]
    next_prompt: int
    finished: bool


@dataclass(frozen=True)
class History:
    """All that the checker looks at.

    Attributes:
      entries: the learner's, in the order in which they happened.
      given_up: prompts of which a rollout worker said that it could not finish them.
      published: policy versions in the order in which they were stored.
    """

    run: str
    total_steps: int
    max_staleness: int
    groups_per_step: int
    entries: Sequence[Entry]
    ledger: Ledger
    given_up: frozenset[int] = frozenset()
    published: Sequence[int] = field(default_factory=tuple)


def entries(records: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The learner's history in a metrics file."""
    found: list[Entry] = []
    for record in records:
        match record["event"]:
            case "life":
                found.append(Begun(record["step"], record["life"]))
            case "consumed":
                fields = (tuple(record["groups"]), tuple(record["oldest"]))
                found.append(Consumed(record["step"], record["version"], *fields, record["life"]))
            case "saving":
                found.append(Saved(record["step"], record["life"]))
            case "fault" if record["name"] == RIVAL:
                found.append(Rival())
            case "rival_ended":
                found.append(RivalEnded())
            case "committed":
                found.append(Committed(record["step"]))
            case "way_back":
                found.append(WentBack(record["step"]))
    return found


def given_up(records: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    return frozenset(record["prompt_index"] for record in records if record.get("prompt_index") is not None)


def read_ledger(queue: TrajectoryQueue) -> Ledger:
    def read(session: Any) -> Ledger:
        numbers = dict(session.execute("SELECT key, value FROM progress"))
        return Ledger(
            groups=dict(session.execute("SELECT group_id, state FROM groups")),
            removed={key.removeprefix("removed_"): n for key, n in numbers.items() if key.startswith("removed_")},
            claimed=frozenset(index for (index,) in session.execute("SELECT prompt_index FROM claims")),
            next_prompt=numbers["next_prompt"],
            finished=bool(numbers["finished"]),
        )

    return queue.database.read(read)

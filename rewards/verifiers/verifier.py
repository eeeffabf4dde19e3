"""What a verifier is: it judges an answer by the columns of a row, without a task, a run or a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from learner_jax.runtime import Door, DoorError, WeirError, raised
from rewards.contracts import RewardResult, failed

Row = Mapping[str, Any]
Judge = Callable[[str, Row], RewardResult]


class Verifier(Protocol):
    """Judges answers to rows. Safe to call from several threads."""

    def judge(self, answer: str, row: Row) -> RewardResult:
        """The verdict on an answer; "refused" for a row that it can't judge. Whatever both are, it returns.

        May block up to the deadline.
        """

    def refusal(self, row: Row) -> str:
        """Why answers to this row can't be judged well; empty if they can. Asked once a row, when data is loaded."""

    def close(self) -> None:
        """Ends worker processes, if the verifier has any."""


#: Name of a verifier -> what makes it, called with the deadline of one answer and the number of answers at a time.
VERIFIER = Door(
    kind="verifier",
    setting="verifier",
    built_in={
        "choice": "rewards.verifiers.choice:create",
        "code": "rewards.verifiers.code:create",
        "exact": "rewards.verifiers.exact:create",
        "format": "rewards.verifiers.answer_format:create",
        "fuzzy": "rewards.verifiers.fuzzy:create",
        "instructions": "rewards.verifiers.instructions:create",
        "json_schema": "rewards.verifiers.json_schema:create",
        "math": "rewards.verifiers.mathematics:create",
        "reasoning_gym": "rewards.verifiers.reasoning_gym:create",
        "tool_call": "rewards.verifiers.tool_call:create",
    },
    keywords=("deadline_s", "num_workers"),
)


class RowError(WeirError, ValueError):
    """A row can't be judged: says which column, what was expected and what was found."""


@dataclass(frozen=True)
class Plain:
    """A verifier that is one function. It may raise `RowError` for a row, and is bounded by itself."""

    function: Judge

    def judge(self, answer: str, row: Row) -> RewardResult:
        try:
            return self.function(answer, row)
        except RowError as error:
            return failed(str(error), "refused")
        except Exception as error:  # noqa: BLE001  (isolation: a bug met on one answer must not end the rollouts)
            return failed(raised(error))

    def refusal(self, row: Row) -> str:
        result = self.judge("", row)
        return result.reasons[0] if result.score is None and result.reasons else ""

    def close(self) -> None:
        """Nothing to end."""


def create_verifier(
    name: str, *, deadline_s: float = 10.0, num_workers: int = 1, sandbox: str = "bubblewrap"
) -> Verifier:
    """The verifier of that name, of Weir's or of an installed package.

    Args:
      deadline_s: longest time for one answer, where answers are judged in processes of their own.
      num_workers: number of those processes.
      sandbox: of `code`: what holds the answers, as `rewards.code.sandbox.open_pool` names it.

    Raises:
      DoorError: there is none, or it can't be made on this machine.
    """
    create = VERIFIER.open(name)
    more = {"sandbox": sandbox} if name == "code" else {}
    verifier: Verifier = create(deadline_s=deadline_s, num_workers=num_workers, **more)
    if lacking := [method for method in ("judge", "refusal", "close") if not hasattr(verifier, method)]:
        raise DoorError(f"verifier {name!r} made a {type(verifier).__name__} without {', '.join(lacking)}")
    return verifier

"""What is told of every answered request to who compares arms: the door for it, and the record that goes through."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from serving_bridge.gateway.answers import CUT, Choice
from serving_bridge.gateway.arms import STABLE, Arms

_log = logging.getLogger(__name__)

#: "cut": a guard ended the answer; "passed": guards watched and let it through; "unwatched": there was none.
GuardVerdict = Literal["cut", "passed", "unwatched"]


@dataclass(frozen=True)
class Observation:
    """One request that an arm has answered, or failed. It holds no text.

    Attributes:
      conversation: a hash that names it; the same for all its requests.
      arm: whose version sampled the answer; where none did, the arm that was asked.
      wanted_arm: that the split gave it.
      version: policy version of the first token, or the asked replica's; -1 where no replica was asked.
      is_mixed: several versions sampled it, or answered its prompts.
      is_shadow: a copy, whose answer no user saw.
      is_covered: users were told what a fallback gave in place of the arm's answer or error.
      status: of HTTP; 0 where the client left before an answer began.
      code: of the error, "" for none; "gone" where the client left.
      ttft_s: from the request's arrival to its first text; None where none came.
      seconds: from its arrival to its end.
      finishes: of each choice; "" for one that did not end.
    """

    response_id: str
    tenant: str
    conversation: str
    arm: str
    wanted_arm: str
    version: int
    is_mixed: bool
    is_shadow: bool
    is_covered: bool
    status: int
    code: str
    ttft_s: float | None
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    finishes: tuple[str, ...]
    guard: GuardVerdict


class Observations(Protocol):
    """Who is told."""

    def answered(self, seen: Observation, texts: Callable[[], Sequence[str]]) -> None:
        """Takes note of a request that ended. Called on the gateway's event loop: it must be quick and not wait.

        Args:
          texts: gives the answer's choices, as a user was told them; good only during this call. What is made of them
            stays in this process.
        """


class NoObservations:
    """Nobody compares arms."""

    def answered(self, seen: Observation, texts: Callable[[], Sequence[str]]) -> None:
        return


@dataclass
class Exchange:
    """A request on its way; filled in by who comes to know it.

    Attributes:
      began_s: when it arrived, on the clock that `ended` is told.
      wanted_arm: "" until it was admitted: what is refused before that is no arm's matter.
      asked_version: of the replica that was asked last; -1 for none.
      first_s: when the first text was there.
      code: of the error that ended it.
      is_covered: a fallback stood in for what the arm gave.
      covered_status: of the error that it stood in for; 0 for none.
    """

    response_id: str
    began_s: float
    is_shadow: bool = False
    tenant: str = ""
    conversation: str = ""
    wanted_arm: str = ""
    asked_version: int = -1
    prompt_tokens: int = 0
    choices: Sequence[Choice] = ()
    is_guarded: bool = False
    first_s: float | None = None
    code: str = field(default="")
    is_covered: bool = False
    covered_status: int = 0

    def copied(self, began_s: float, choices: Sequence[Choice]) -> Exchange:
        """The same request to another arm, whose answer only we see."""
        return Exchange(
            self.response_id,
            began_s,
            is_shadow=True,
            tenant=self.tenant,
            conversation=self.conversation,
            wanted_arm=self.wanted_arm,
            prompt_tokens=self.prompt_tokens,
            choices=choices,
            is_guarded=self.is_guarded,
        )

    def ended(self, status: int, now_s: float, arms: Arms) -> Observation | None:
        """What is told of it; None where no arm was concerned."""
        if not self.wanted_arm:
            return None
        versions = {span.version for choice in self.choices for span in choice.spans if span.version is not None}
        sampled = [choice.spans[0].version for choice in self.choices if choice.spans]
        version = sampled[0] if sampled and sampled[0] is not None else self.asked_version
        return Observation(
            response_id=self.response_id,
            tenant=self.tenant,
            conversation=self.conversation,
            arm=arms.of_version(version, self.wanted_arm) if version >= 0 else self.wanted_arm or STABLE,
            wanted_arm=self.wanted_arm,
            version=version,
            is_mixed=len(versions) > 1,
            is_shadow=self.is_shadow,
            is_covered=self.is_covered,
            status=status,
            code=self.code or ("" if status else "gone"),
            ttft_s=None if self.first_s is None else self.first_s - self.began_s,
            seconds=now_s - self.began_s,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(choice.num_tokens for choice in self.choices),
            finishes=tuple(choice.finish or "" for choice in self.choices),
            guard=self._guard(),
        )

    def texts(self) -> list[str]:
        """Of its choices."""
        return ["".join(choice.text) for choice in self.choices]

    def _guard(self) -> GuardVerdict:
        if not self.is_guarded:
            return "unwatched"
        return "cut" if any(choice.finish == CUT for choice in self.choices) else "passed"


def tell(observations: Observations, exchange: Exchange, status: int, now_s: float, arms: Arms) -> Observation | None:
    """Hands on a request that ended, and returns what was told; a fault of the observer is no user's matter."""
    seen = exchange.ended(status, now_s, arms)
    if seen is None:
        return None
    try:
        observations.answered(seen, exchange.texts)
    except Exception as error:  # noqa: BLE001  (isolates: the answer was given already)
        _log.error("an observer failed on %s: %s", exchange.response_id, type(error).__name__)
    return seen

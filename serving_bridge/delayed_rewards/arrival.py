"""A reward on its way: what somebody outside says that a trajectory earned, checked before anything is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from learner_jax.contracts import MAX_REWARD, ContractError, check_parts, check_printable, is_number, quoted

#: What a reward is called whose sender gives it no name.
_ONE = "reward"


@dataclass(frozen=True)
class Arrival:
    """One reward.

    Attributes:
      subject: id of what it is for: a trajectory's.
      reward_id: the sender's name for it. The same name for the same subject is the same reward, sent again.
      value: the reward.
      parts: named components, for people and metrics.

    Raises:
      ContractError: a field is not what a record may hold.
    """

    subject: str
    reward_id: str
    value: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in (("trajectory_id", self.subject), ("reward_id", self.reward_id)):
            check_printable(name, text)
            if not text:
                raise ContractError(f"{name} is empty")
        if not is_number(self.value, -MAX_REWARD, MAX_REWARD):
            raise ContractError(
                f"reward is {quoted(self.value, 80)}, expected a number from {-MAX_REWARD:g} to {MAX_REWARD:g}"
            )
        check_parts("parts", self.parts)


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    trajectory_id: str
    reward: float
    reward_id: str = _ONE
    parts: dict[str, float] = {}


_decoder = msgspec.json.Decoder(_Wire)


def read_arrival(line: bytes) -> Arrival:
    """The reward in a JSON object with trajectory_id, reward, and perhaps reward_id and parts.

    Raises:
      ContractError: it is none; says which field.
    """
    try:
        wire = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"no reward: {quoted(str(error), 200)}") from error
    return Arrival(wire.trajectory_id, wire.reward_id, wire.reward, wire.parts)

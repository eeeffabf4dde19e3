"""One piece of feedback on its way: what somebody says of an answer, checked before anything is stored."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import msgspec

from learner_jax.contracts import MAX_REWARD, ContractError, check_printable, quoted

Kind = Literal["rating", "thumbs", "edit", "comparison", "outcome", "regenerate", "copy", "abandon", "next_turn"]
Source = Literal["explicit", "implicit"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: What people did, and did not say; kept apart from what they said.
IMPLICIT: frozenset[Kind] = frozenset({"regenerate", "copy", "abandon", "next_turn"})
_MAX_NAME = 256
#: kind -> lowest and highest value; None: it has none
_VALUES: dict[Kind, tuple[float, float] | None] = {
    "rating": (0.0, 1.0),
    "thumbs": (0.0, 1.0),
    "comparison": (0.0, 1.0),
    "outcome": (-MAX_REWARD, MAX_REWARD),
    "next_turn": (-1.0, 1.0),
    "edit": None,
    "regenerate": None,
    "copy": None,
    "abandon": None,
}
_WORDS = {"up": 1.0, "down": 0.0, "this": 1.0, "tie": 0.5, "other": 0.0}


@dataclass(frozen=True)
class Feedback:
    """What is said of one answer.

    Attributes:
      feedback_id: the sender's name for it; the same name again is the same feedback.
      answer_id: `{response id}/{choice}`, or `session:NAME` for the last answer of a named session.
      value: a rating from 0 to 1; of thumbs 1 or 0; of a comparison 1 for this answer, 0 for the other, 0.5 for a tie;
        an outcome's reward; of what the user said next -1 to 1. None for the other kinds.
      text: of an edit, the answer as it should have been.
      other: id of the answer that this one was compared with.
      rater: the tenant's name for who says it; "" where it gives none.
      position: place at which the answer was shown, from 0 on; None where it is not known.
      judge: name and version of the program that says it; "" for people.
      at_s: when it was said, by the sender's clock; None for now.
      user: of a named session, as its requests named the user.
    """

    feedback_id: str
    answer_id: str
    kind: Kind
    value: float | None = None
    text: str | None = None
    other: str | None = None
    rater: str = ""
    position: int | None = None
    judge: str = ""
    at_s: float | None = None
    user: str = ""

    @property
    def source(self) -> Source:
        return "implicit" if self.kind in IMPLICIT else "explicit"

    @property
    def digest(self) -> str:
        """Equal for feedback that says the same."""
        said = msgspec.json.encode([getattr(self, name) for name in self.__dataclass_fields__])
        return hashlib.blake2b(said, digest_size=16).hexdigest()


class FeedbackPiece(msgspec.Struct, forbid_unknown_fields=True):
    """One piece as its sender writes it."""

    kind: str
    response_id: str = ""
    session: str = ""
    user: str = ""
    choice: int = 0
    id: str = ""
    value: float | str | None = None
    text: str | None = None
    other_response_id: str = ""
    other_choice: int = 0
    rater: str = ""
    position: int | None = None
    at: float | None = None


_decoder = msgspec.json.Decoder(FeedbackPiece)


def read_feedback(content: bytes, *, max_text_chars: int, max_outcome: float = MAX_REWARD) -> Feedback:
    """The feedback in a JSON object.

    Args:
      max_outcome: largest outcome, above or below 0.

    Raises:
      ContractError: it is none; names the field, what was expected and what came.
    """
    try:
        wire = _decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError(f"no feedback: {quoted(str(error), 200)}") from error
    if wire.kind not in KINDS or wire.kind == "next_turn":
        raise ContractError(f"kind is {quoted(wire.kind, 50)}, expected one of {', '.join(KINDS[:-1])}")
    kind: Kind = wire.kind
    for name in ("response_id", "session", "user", "id", "other_response_id", "rater"):
        check_printable(name, getattr(wire, name), _MAX_NAME)
    if bool(wire.response_id) == bool(wire.session):
        raise ContractError("give response_id, the id of the answer, or session, the name of a session that began here")
    answer_id = _answer("choice", wire.response_id, wire.choice) if wire.response_id else f"session:{wire.session}"
    other = _answer("other_choice", wire.other_response_id, wire.other_choice) if wire.other_response_id else None
    if (kind == "comparison") != (other is not None) or other == answer_id:
        raise ContractError("other_response_id is for kind comparison, which needs it: the answer that was compared")
    if wire.position is not None and not 0 <= wire.position <= 1000:
        raise ContractError(f"position is {wire.position}, expected 0 to 1000")
    if wire.at is not None and not 0 <= wire.at <= 1e11:
        raise ContractError(f"at is {quoted(wire.at, 50)}, expected seconds since 1970")
    found = Feedback(
        feedback_id=wire.id,
        answer_id=answer_id,
        kind=kind,
        value=_value(kind, wire.value, max_outcome),
        text=_text(kind, wire.text, max_text_chars),
        other=other,
        rater=wire.rater,
        position=wire.position,
        at_s=wire.at,
        user=wire.user,
    )
    return found if wire.id else _named(found)


def _named(found: Feedback) -> Feedback:
    """Feedback without a name of its own is named by what it says: sent again, it is the same."""
    return replace(found, feedback_id=found.digest)


def _answer(where: str, response_id: str, choice: int) -> str:
    if not 0 <= choice < 1000:
        raise ContractError(f"{where} is {choice}, expected 0 to 999")
    return f"{response_id}/{choice}"


def _value(kind: Kind, value: float | str | None, max_outcome: float) -> float | None:
    bounds = (-max_outcome, max_outcome) if kind == "outcome" else _VALUES[kind]
    if bounds is None:
        if value is not None:
            raise ContractError(f"value is {quoted(value, 50)}: feedback of kind {kind} has none")
        return None
    if isinstance(value, str):
        words = ("up", "down") if kind == "thumbs" else ("this", "tie", "other") if kind == "comparison" else ()
        if value not in words:
            told = f"one of {', '.join(words)}" if words else "a number"
            raise ContractError(f"value is {quoted(value, 50)}, expected {told}")
        return _WORDS[value]
    setting = " (feedback.max_outcome)" if kind == "outcome" else ""
    if value is None or not math.isfinite(value) or not bounds[0] <= value <= bounds[1]:
        raise ContractError(
            f"value is {quoted(value, 50)}, expected a number from {bounds[0]:g} to {bounds[1]:g}{setting}"
        )
    return float(value)


def _text(kind: Kind, text: str | None, most: int) -> str | None:
    if (kind == "edit") != (text is not None):
        raise ContractError("text is for kind edit, which needs it: the answer as it should have been")
    if text is None:
        return None
    if not 0 < len(text) <= most:
        raise ContractError(f"text has {len(text)} characters, expected 1 to {most} (feedback.max_text_chars)")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ContractError(f"text holds a lone surrogate at character {error.start}") from None
    if "\0" in text:
        raise ContractError("text holds the character U+0000")
    return text

"""What a guard says of a text: findings with their places, a verdict, and the text without personal data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """Where a text is on its way through Weir."""

    PROMPT = "prompt"
    ANSWER = "answer"
    TRAINING_DATA = "training_data"


class Verdict(StrEnum):
    """What happens to a text: it passes, passes with a mark, is refused, or could not be judged."""

    ALLOW = "allow"
    FLAG = "flag"
    BLOCK = "block"
    ERROR = "error"


class Kind(StrEnum):
    """What a finding is about; the names of the placeholders that redaction leaves."""

    EMAIL = "EMAIL"
    PHONE = "PHONE"
    CARD = "CARD"
    IBAN = "IBAN"
    IP = "IP"
    MAC = "MAC"
    SSN = "SSN"
    NATIONAL_ID = "NATIONAL_ID"
    ACCOUNT = "ACCOUNT"
    CRYPTO = "CRYPTO"
    DEVICE = "DEVICE"
    VEHICLE = "VEHICLE"
    DATE_OF_BIRTH = "DATE_OF_BIRTH"
    COORDINATES = "COORDINATES"
    KEY = "KEY"
    PASSWORD = "PASSWORD"
    PAYLOAD = "PAYLOAD"


#: Categories of findings that redaction removes.
PERSONAL_DATA, SECRET = "personal_data", "secret"
REDACTED = frozenset({PERSONAL_DATA, SECRET})


@dataclass(frozen=True, order=True)
class Span:
    """A finding in a text.

    Attributes:
      start, end: characters of the text, end exclusive.
      kind: a `Kind` for what redaction removes, the category's name for all else.
      category: `personal_data`, `secret`, `prompt_injection` or a category of harm.
      guard: what found it.
    """

    start: int
    end: int
    kind: str
    category: str
    guard: str

    def as_list(self) -> list[int | str]:
        """[start, end, kind, category, guard], as the command and the audit log write it."""
        return [self.start, self.end, self.kind, self.category, self.guard]


@dataclass(frozen=True)
class Opinion:
    """What one guard says of one text.

    Attributes:
      guard, version: who says it.
      verdict: `error` where the guard could not judge.
      categories: why, sorted.
      spans: where; empty for a guard that judges a text as a whole.
      reason: a line without any of the text.
    """

    guard: str
    version: str
    verdict: Verdict
    categories: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """What all guards together decided about one text.

    Attributes:
      verdict: `error` only where the stage fails closed; the text is then held back as if blocked.
      categories: sorted.
      spans: sorted by place; those of `REDACTED` categories do not overlap.
      redacted: the text with placeholders in the place of personal data and secrets.
      opinions: of every guard that was asked.
    """

    verdict: Verdict
    categories: tuple[str, ...]
    spans: tuple[Span, ...]
    redacted: str
    opinions: tuple[Opinion, ...] = field(default=(), repr=False)

    @property
    def passes(self) -> bool:
        """Whether the text may go on."""
        return self.verdict in (Verdict.ALLOW, Verdict.FLAG)

"""What the patterns of a suite say of an answer's text: refused or not, well-formed or not, and what it votes for."""

from __future__ import annotations

from dataclasses import dataclass

from learner_jax.runtime import Pattern, SlowPatternError
from tools.evaluation.suites import SuiteSettings

#: Refusals begin with it; what an answer quotes further down is none.
_BEGINNING = 500


@dataclass(frozen=True)
class Reading:
    """Of one answer.

    Attributes:
      refused: one of `refusals` is found in it.
      well_formed: `format` is found in it; None where the suite has no format.
      vote: what maj@k counts.
      problem: which pattern did not come to an end, for people; empty if all did.
    """

    refused: bool
    well_formed: bool | None
    vote: str
    problem: str = ""


class Reader:
    """Reads answers by the patterns of one suite; may be used by several threads."""

    def __init__(self, settings: SuiteSettings) -> None:
        self._format = Pattern(settings.format) if settings.format else None
        self._vote = Pattern(settings.vote) if settings.vote else None
        self._refusals = [Pattern(text, ignore_case=True, dot_all=True) for text in settings.refusals]

    def read(self, text: str) -> Reading:
        """A pattern that takes too long on the text is a problem of the reading, which then says nothing."""
        try:
            return Reading(
                refused=any(pattern.found_in(text[:_BEGINNING]) for pattern in self._refusals),
                well_formed=self._format.found_in(text) if self._format else None,
                vote=self._voted(text),
            )
        except SlowPatternError as error:
            return Reading(False, None, "", str(error))

    def _voted(self, text: str) -> str:
        """The whole answer where the suite has no pattern."""
        return ((self._vote.last_in(text) or "") if self._vote else text).strip()

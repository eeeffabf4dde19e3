"""What did not hold in a simulated run: the name of the invariant, and what was seen."""

from __future__ import annotations


class Violation(AssertionError):
    """Something that must always hold did not."""


class Violations:
    """Keeps the first: it is found deep in code that may catch what is raised there."""

    def __init__(self) -> None:
        self.first: Violation | None = None

    def require(self, holds: bool, invariant: str, what: str) -> None:
        """Notes a violation unless it holds."""
        if not holds:
            self.note(invariant, what)

    def note(self, invariant: str, what: str) -> None:
        if self.first is None:
            self.first = Violation(f"{invariant}: {what}")

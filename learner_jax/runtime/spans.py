"""Where processes tell how long what took, by group; nobody listens unless a run is traced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

_NOTHING = nullcontext()


class Spans(Protocol):
    """Takes spans of time. Safe to use from several threads and tasks; no method raises or waits."""

    def group(self, group_id: str) -> AbstractContextManager[None]:
        """The way of one group in a rollout worker; what `span` tells inside belongs to it."""

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        """A part of the way of the group that this task works on; outside of one it is nothing."""

    def past(
        self, group_ids: Sequence[str], name: str, began_s: float, ended_s: float, **attributes: str | int | float
    ) -> None:
        """A part of the ways of these groups that has ended; times are wall-clock seconds."""


class NoSpans:
    """Implements `Spans` where nothing is traced."""

    def group(self, group_id: str) -> AbstractContextManager[None]:
        return _NOTHING

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        return _NOTHING

    def past(
        self, group_ids: Sequence[str], name: str, began_s: float, ended_s: float, **attributes: str | int | float
    ) -> None:
        """Nobody listens."""


#: Stateless, so that all may share it.
NO_SPANS = NoSpans()

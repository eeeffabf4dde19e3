"""What a process of the gateway did, as figures for its log: totals since the last event, and what is going on now."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Figures of one process.

    Attributes:
      in_flight: requests that are being answered.
      totals: since the last `taken`; times in seconds.
      statuses: answers by HTTP status, those that never began by "gone".
      fallbacks: answers by case and policy, those that no policy gave by "none".
      arms: requests by the arm that answered or failed them.
    """

    in_flight: int = 0
    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    statuses: Counter[str] = field(default_factory=Counter)
    arms: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)

    def taken(self) -> dict[str, Any]:
        """The fields of an event; the totals begin anew."""
        counted = {"statuses": self.statuses, "arms": self.arms, "fallbacks": self.fallbacks}
        found = {name: dict(counter) for name, counter in counted.items()}
        totals, self.totals = self.totals, defaultdict(float)
        self.statuses, self.arms, self.fallbacks = Counter(), Counter(), Counter()
        return {"in_flight": self.in_flight, **found, **totals}

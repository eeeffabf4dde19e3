"""The rollout worker's line of metrics: what was counted since the last one, and how things stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

#: every line has all of them
_COUNTERS = (
    "groups",
    "tokens",
    "retries",
    "mixed_version_answers",
    "skipped_prompts",
    "left_out_prompts",
    "failed_groups",
    "verdicts",
    "failed_verdicts",
    "unjudged_groups",
    "resumed",
    "segments",
    "spares_used",
    "deadline_hits",
    "environment_turns",
    "environment_close_errors",
    "agent_answers",
    "agent_side_answers",
    "agent_rebuilt",
    "queue_full_waits",
    "lost_claims",
    "released_groups",
    "unrewarded_groups",
)


class Interval:
    """Counters of the time since the last line.

    Attributes:
      count: to be added to by name.
      sources: by label of the source, where there are several: groups, episodes and their sampled
        tokens, judged answers, passes and summed reward.
      idle_s: seconds in which nothing ran.
    """

    def __init__(self, log: Callable[..., None], now_s: float, *, every_s: float = 1.0) -> None:
        self.count: Counter[str] = Counter()
        self.sources: dict[str, Counter[str]] = {}
        self.idle_s = 0.0
        self._log = log
        self._every_s = every_s
        self._began_s = now_s

    def is_due(self, now_s: float) -> bool:
        return now_s - self._began_s >= self._every_s

    def write(self, now_s: float, **state: Any) -> None:
        """Writes the line, with what else is known now, and begins anew."""
        counts = {name: self.count[name] for name in _COUNTERS}
        sources = {"sources": {label: _told(found) for label, found in self.sources.items()}} if self.sources else {}
        self._log("interval", seconds=now_s - self._began_s, idle_s=self.idle_s, **state, **counts, **sources)
        self.count.clear()
        self.sources.clear()
        self.idle_s, self._began_s = 0.0, now_s


def _told(found: Counter[str]) -> dict[str, float]:
    """A source's counters, and the mean reward where answers were judged."""
    mean = {"reward_mean": found["reward"] / found["answers"]} if found["answers"] else {}
    return dict(found) | mean

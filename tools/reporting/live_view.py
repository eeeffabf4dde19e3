"""The live view of a run: what `metrics.jsonl` says, as a picture in a terminal or as plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live

from configs.schema import Config
from serving_bridge.routing import ReplicaRegistry, registry_folder
from serving_bridge.telemetry import Record
from tools.reporting import terminal
from tools.reporting.figures import RunHistory
from tools.reporting.picture import picture
from tools.reporting.plain import plain_event, plain_line

#: Rollout intervals kept in memory; at one a second and worker, enough for the window unless steps take minutes.
_KEPT_INTERVALS = 10_000
_PLAIN_EVERY_S = 5.0
_MAX_WIDTH = 100


class LiveView:
    """Shows a run while it goes on. Redraws in place on a terminal; elsewhere writes a line every few seconds.

    Use as a context manager; `update` takes the events that came since the last call.
    """

    def __init__(
        self,
        config: Config,
        directory: str | Path,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._directory = Path(directory)
        self._console = console or terminal.console()
        self._clock = clock
        self._registry = ReplicaRegistry(registry_folder(config.store.weights, self._directory), clock=clock)
        self._history = RunHistory(intervals=deque(maxlen=_KEPT_INTERVALS))
        self._live: Live | None = None
        self._last_line_t = 0.0
        self._last_line = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Drawn by `update` rather than by a thread of rich's, which would read the history while it changes.
            self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._picture)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._write_line()

    def update(self, records: Iterable[Record]) -> None:
        records = list(records)
        self._history.add(records)
        if self._live is not None:
            self._live.refresh()
            return
        for record in records:
            if record["event"] in ("phase", "evaluation"):
                self._console.print(plain_event(record), highlight=False, soft_wrap=True)
        if records and self._clock() - self._last_line_t >= _PLAIN_EVERY_S:
            self._write_line()

    def _write_line(self) -> None:
        self._last_line_t = self._clock()
        line = plain_line(self._history, self._config)
        if line != self._last_line:
            self._console.print(line, highlight=False, soft_wrap=True)
        self._last_line = line

    def _picture(self) -> RenderableType:
        width = min(self._console.width, _MAX_WIDTH)
        return picture(
            self._history, self._config, self._directory, now=self._clock(), width=width, replicas=self._replicas()
        )

    def _replicas(self) -> dict[str, int] | None:
        """States by the fleet's own rows, which tell when they were written: a killed fleet writes no event."""
        rows = self._registry.replicas()
        return dict(Counter(self._registry.state(row) for row in rows)) if rows else None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected of the run."""
        return self._history.is_over

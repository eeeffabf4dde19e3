"""A trace of some steps, for Perfetto or XProf."""

from __future__ import annotations

from pathlib import Path

import jax


class Profiler:
    """Traces `num_steps` steps from the third one of this process on: what is compiled first is not in the picture.

    Args:
      directory: where the trace goes; holds a `perfetto_trace.json.gz` and what XProf reads when done.
    """

    _SKIPPED = 2

    def __init__(self, directory: Path, num_steps: int):
        self._directory, self._num_steps = directory, num_steps
        self._seen, self._running = 0, False

    def before_step(self) -> None:
        if self._seen == self._SKIPPED and self._num_steps:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after_step(self) -> None:
        self._seen += 1
        if self._running and self._seen >= self._SKIPPED + self._num_steps:
            self.close()

    def close(self) -> None:
        """Writes the trace, also of fewer steps than were asked for."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

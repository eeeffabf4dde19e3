"""A request to stop, by SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal


class StopRequest:
    """Becomes true on SIGTERM or Ctrl-C; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def ask(self, signum: int, frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def install(self) -> StopRequest:
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)
        return self

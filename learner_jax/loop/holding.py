"""Whether the next step may be taken: all hosts ask at once, and stay here while training is held."""

from __future__ import annotations

import time
from collections.abc import Callable

from learner_jax.hosts import Hosts

Log = Callable[..., None]

#: Why training must wait; None where it may go on. Must answer soon, whatever it asks.
Hold = Callable[[], str | None]

#: Seconds between two looks while training is held: a stop is seen as soon.
_LOOK_S = 0.25


class Holding:
    """Lets steps be taken or not, in the same way on all hosts.

    Args:
      hold: asked on the leader alone, whose answer holds for all; None never holds.
      should_stop: asked on every host; one that says so stops all.
      begun: called once when a hold begins, on all hosts: it may last long, so that the run should be saved.
      meanwhile: called again and again while it lasts, on all hosts.
      log: told of "hold" with `held` true when it begins, and false when it ends or the learner stops.
    """

    def __init__(
        self,
        hosts: Hosts,
        hold: Hold | None,
        should_stop: Callable[[], bool],
        *,
        begun: Callable[[], None],
        meanwhile: Callable[[], None],
        log: Log,
    ) -> None:
        self._hosts, self._hold, self._should_stop = hosts, hold, should_stop
        self._begun, self._meanwhile, self._log = begun, meanwhile, log

    def may_go_on(self, step: int) -> bool:
        """Whether to take step number `step`; False if a stop was asked for. Returns once training is not held.

        Raises:
          HostError: another host does not answer.
        """
        since_s: float | None = None
        while True:
            held = self._hold() if self._hold is not None and self._hosts.is_leader else None
            answers = self._hosts.gather([self._should_stop(), held], f"whether to go on with step {step}")
            is_stopped, reason = any(stop for stop, _ in answers), answers[0][1]
            if since_s is not None and (is_stopped or reason is None):
                self._log("hold", held=False, step=step - 1, seconds=time.monotonic() - since_s)
            if is_stopped:
                return False
            if reason is None:
                return True
            if since_s is None:
                since_s = time.monotonic()
                self._log("hold", held=True, step=step - 1, reason=reason)
                self._begun()
            else:
                self._meanwhile()
            time.sleep(_LOOK_S)

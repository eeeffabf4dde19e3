"""An answer on its way to a user: held back until it was judged, and cut where a guard blocks it."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving_bridge.safety.decisions import Decision

_SENTENCE_END = re.compile(r"[.!?\n](?=\s|$)|\n")


@dataclass(frozen=True)
class Released:
    """What may go to the user now.

    Attributes:
      text: may be empty while text is held.
      cut: the stream ends here, with the finish reason `content_filter`; nothing more comes.
      decision: of the guards, where they judged.
    """

    text: str
    cut: bool = False
    decision: Decision | None = None


class StreamGuard:
    """Releases an answer sentence by sentence. Characters wait until their sentence has ended and passed.

    A sentence longer than the window is released but for its last `window_chars`, so a finding of that length is
    never released in part. Memory is bounded by three windows and one chunk. After a cut all that is held is dropped.
    """

    def __init__(
        self,
        judge: Callable[[str], Awaitable[Decision]],
        *,
        window_chars: int,
        window_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._judge, self._window, self._window_s, self._clock = judge, window_chars, window_s, clock
        self._context = self._held = ""
        self._judged = 0
        self._judged_at = clock()
        self._is_cut = False

    async def push(self, text: str) -> Released:
        """Takes the next characters; gives those that may go on."""
        parts: list[str] = []
        for begin in range(0, len(text), self._window):
            self._held += text[begin : begin + self._window]
            if self._is_due():
                released = await self._release(self._safe_end)
                parts.append(released.text)
                if released.cut:
                    return Released("".join(parts), True, released.decision)
        return Released("".join(parts), self._is_cut)

    async def end(self) -> Released:
        """The rest, judged; call it when the answer has ended."""
        if self._is_cut or not self._held:
            return Released("", self._is_cut)
        return await self._release(lambda: len(self._held))

    def _is_due(self) -> bool:
        new = self._held[self._judged :]
        if not new or self._is_cut:
            return False
        late = self._clock() - self._judged_at >= self._window_s
        return late or len(self._held) >= 2 * self._window or _SENTENCE_END.search(new) is not None

    async def _release(self, end: Callable[[], int]) -> Released:
        decision = await self._judge(self._context + self._held)
        self._judged_at = self._clock()
        if not decision.passes:
            self._is_cut, self._held, self._context = True, "", ""
            return Released("", True, decision)
        place = end()
        passed, self._held = self._held[:place], self._held[place:]
        self._judged = len(self._held)
        self._context = (self._context + passed)[-self._window :]
        return Released(passed, decision=decision)

    def _safe_end(self) -> int:
        """The end of the last whole sentence, or all but a window of a long one."""
        ends = [match.end() for match in _SENTENCE_END.finditer(self._held)]
        return max(ends[-1] if ends else 0, len(self._held) - self._window)

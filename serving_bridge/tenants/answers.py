"""The answers that a gateway has admitted and not yet seen billed: in memory, and in its journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from serving_bridge.tenants.journal import Began, Ended, Journal, Written
from serving_bridge.tenants.meter_rows import Bill, at_reservation

#: The journal is written anew when it has grown so far.
_JOURNAL_BYTES = 4 * 2**20


@dataclass
class _Open:
    began: Began
    since_s: float
    on_lapse: Callable[[Ended], None]
    may_be_written: bool = False
    is_written: bool = False


@dataclass
class Answers:
    """See the module; used by one thread.

    Attributes:
      lease_s: an answer that has not ended after so long is settled at its reservation.
    """

    journal: Journal
    lease_s: float
    _open: dict[str, _Open] = field(default_factory=dict)
    _ended: dict[str, Bill] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_unwritten(self) -> int:
        """Answers that ended and are not in the database."""
        return len(self._ended)

    def knows(self, response_id: str) -> bool:
        return response_id in self._open or response_id in self._ended

    def begin(self, began: Began, now: float, on_lapse: Callable[[Ended], None]) -> None:
        """Keeps an answer that is admitted; `on_lapse` is called if it does not end within the lease."""
        self.journal.append(began)
        self._open[began.response_id] = _Open(began, now, on_lapse)

    def end(self, ended: Ended) -> bool:
        """Bills an answer; False if it ended before, and nothing is changed."""
        found = self._open.pop(ended.response_id, None)
        if found is None:
            return False
        self._ended[ended.response_id] = (found.began, ended)
        self._note(ended)
        return True

    def cancel(self, response_id: str) -> bool:
        """Forgets an answer that was never sent to a model; False if it ended before."""
        found = self._open.pop(response_id, None)
        if found is None:
            return False
        if found.may_be_written:  # if the database knows of it, it ends there as an answer that used nothing
            nothing = Ended(response_id, 0, 0, 0, "usage")
            self._ended[response_id] = (found.began, nothing)
            self._note(nothing)
        else:
            self._note(Written((response_id,)))
        return True

    def adopt(self, bills: Iterable[Bill]) -> None:
        """Takes over answers of a process that is gone."""
        for began, ended in bills:
            self.journal.append(began)
            self.journal.append(ended)
            self._ended[began.response_id] = (began, ended)

    def lapse(self, now: float) -> None:
        """Settles answers at their reservation that did not end within the lease."""
        late = [found for found in self._open.values() if now - found.since_s > self.lease_s]
        for found in late:
            ended = at_reservation(found.began)
            if self.end(ended):
                found.on_lapse(ended)

    def unwritten(self) -> tuple[Sequence[Began], Sequence[Bill]]:
        """Open answers that the database does not know, and ended ones that are not billed there."""
        new = [found for found in self._open.values() if not found.is_written]
        for found in new:
            found.may_be_written = True
        return [found.began for found in new], list(self._ended.values())

    def written(self, opened: Sequence[Began], bills: Sequence[Bill]) -> None:
        """The database has them."""
        for began in opened:
            if (found := self._open.get(began.response_id)) is not None:
                found.is_written = True
        ids = [began.response_id for began, _ in bills]
        for response_id in ids:
            self._ended.pop(response_id, None)
        if ids:
            self._note(Written(tuple(ids)))
        if self.journal.num_bytes > _JOURNAL_BYTES:
            with suppress(OSError):  # it stays as it is, and is tried again
                self._compact()

    def _note(self, line: Ended | Written) -> None:
        """Adds to the journal what memory has: on a full disk only a kill before the next exchange would lose it."""
        with suppress(OSError):
            self.journal.append(line)

    def _compact(self) -> None:
        lines: list[Began | Ended] = [found.began for found in self._open.values()]
        for began, ended in self._ended.values():
            lines += (began, ended)
        self.journal.replace(lines)

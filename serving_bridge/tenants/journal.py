"""What a gateway process must not forget when it is killed: a journal with a line for each answer that began or ended.

A line survives the process, and not the machine, unless the exchange with the database, every second, was faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from serving_bridge.processes import Journal as JournalFile
from serving_bridge.processes import LeftJournal, left_journals


class Began(msgspec.Struct, frozen=True, tag="began"):
    """An answer that was admitted, with what was reserved for it.

    Attributes:
      completion_tokens: n times max_tokens.
      nanos: what the reservation costs, in billionths of the currency's unit.
      began_s: wall clock, seconds since the epoch.
    """

    response_id: str
    tenant: str
    key_id: str
    model: str
    month: str
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    began_s: float


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """What an answer used, and how that is known."""

    response_id: str
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    settled: str


class Written(msgspec.Struct, frozen=True, tag="written"):
    """Answers that are billed in the database, or that were never sent to a model and are not billed."""

    response_ids: tuple[str, ...]


_Line = Began | Ended | Written
_decoder = msgspec.json.Decoder(_Line)
_encoder = msgspec.json.Encoder()


class Journal:
    """This process's journal; see `serving_bridge.processes.Journal` for arguments and errors."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = JournalFile(folder, name)

    @property
    def num_bytes(self) -> int:
        return self._file.num_bytes

    def append(self, line: _Line) -> None:
        """Adds a line. Raises `OSError` when the disk is full: the answer must then not begin."""
        self._file.append(_encoder.encode(line))

    def replace(self, lines: Iterable[_Line]) -> None:
        """Writes it anew with what still matters."""
        self._file.replace(_encoder.encode(line) for line in lines)

    def close(self, *, remove: bool) -> None:
        """Ends it; `remove` where everything in it is in the database."""
        self._file.close(remove=remove)


class Left:
    """The journal of a process that is gone; held until it is removed or closed.

    Attributes:
      gateway: whose it was.
      open: answers that had begun and not ended.
      ended: answers that ended and were perhaps not written, with how they began.
    """

    def __init__(self, file: LeftJournal) -> None:
        self._file = file
        self.gateway = file.name
        self.open: dict[str, Began] = {}
        self.ended: dict[str, tuple[Began, Ended]] = {}
        for line in _decoded(file.lines):
            match line:
                case Began():
                    self.open[line.response_id] = line
                case Ended():
                    began = self.open.pop(line.response_id, None)
                    if began is not None:
                        self.ended[line.response_id] = (began, line)
                case Written():
                    for response_id in line.response_ids:
                        self.open.pop(response_id, None)
                        self.ended.pop(response_id, None)

    def remove(self) -> None:
        """Everything in it is in the database."""
        self._file.remove()

    def close(self) -> None:
        self._file.close()


def left_behind(folder: Path) -> Sequence[Left]:
    """The journals in a folder whose processes are gone."""
    return [Left(file) for file in left_journals(folder)]


def _decoded(lines: Iterable[bytes]) -> Iterator[_Line]:
    for line in lines:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # the last one may be cut off
            yield _decoder.decode(line)

"""Where the hosts of one replica meet: a file that its first host writes for each start of the server.

The file lies beside the registry's rows, on the path that all serving hosts see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from serving_bridge.routing import Name, read_record, write_file

_FOLDER = "meetings"
Address = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._:-]{1,253}\Z")]
Start = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{1,64}\Z")]


class Meeting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One start of a server that runs on several hosts.

    Attributes:
      start: names it; the other hosts join each start once.
      address, port: of its first host, where torch's processes find each other.
    """

    replica: Name
    start: Start
    address: Address
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class MeetingPoint:
    """The file of one replica.

    Args:
      folder: of the registry.
    """

    def __init__(self, folder: Path, replica: str) -> None:
        self._path = folder / _FOLDER / f"{replica}.json"
        self._replica = replica

    def call(self, start: str, address: str, port: int) -> Meeting:
        """Has the other hosts join a start. Raises OSError."""
        meeting = Meeting(self._replica, start, address, port)
        write_file(self._path, msgspec.json.encode(meeting))
        return meeting

    def end(self) -> None:
        """Has the other hosts end what they run."""
        self._path.unlink(missing_ok=True)

    def current(self) -> Meeting | None:
        """The start that is to be joined; None if there is none."""
        found = read_record(self._path, Meeting)
        return found if found is not None and found.replica == self._replica else None

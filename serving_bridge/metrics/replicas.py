"""vLLM's own metrics, fetched from each replica with its token and passed on with the replica's name."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

#: Between two looks at the replicas, however often they are scraped: vLLM makes its page in the process that answers
#: requests.
EVERY_S = 5.0
#: of all replicas together; Prometheus' own limit is 10 s unless it is set
_FETCH_S = 4.0
_MAX_BYTES = 2**23
_MAX_AT_ONCE = 16
_FAMILY = re.compile(r"# (?:HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) ")
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}")
_PAGE = "/metrics"


class Replica(NamedTuple):
    """Where a replica answers, the token that opens its metrics, and the version that it serves."""

    name: str
    url: str
    token: str
    version: int


class ReplicaPages:
    """One page of the metrics of all replicas.

    Args:
      replicas: those to be asked; may raise `OSError`.
      failed: told the name of each that gave no answer.
      version_label: also label every series with the version that the replica serves: new series for each version.
      clock: seconds.
    """

    def __init__(
        self,
        replicas: Callable[[], Iterable[Replica]],
        *,
        failed: Callable[[str], None] = lambda name: None,
        version_label: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas, self._failed, self._version_label = replicas, failed, version_label
        self._clock, self._lock = clock, threading.Lock()
        self._page, self._next_s = b"", float("-inf")

    def page(self) -> bytes:
        """The samples of every replica that answers, each family once, with the label `replica`.

        Scrapes within `EVERY_S` of the last look get the same page, and those during a look wait for it.
        """
        with self._lock:
            if self._clock() >= self._next_s:
                self._page = self._looked()
                self._next_s = self._clock() + EVERY_S
            return self._page

    def _looked(self) -> bytes:
        wanted = [replica for replica in self._replicas() if _NAME.fullmatch(replica.name)]
        families: dict[str, tuple[list[str], list[str]]] = {}
        if wanted:
            with ThreadPoolExecutor(min(len(wanted), _MAX_AT_ONCE)) as pool:
                for replica, text in zip(wanted, pool.map(_fetched, wanted), strict=True):
                    if text is None:
                        self._failed(replica.name)
                    else:
                        _add(families, text, self._labels(replica))
        lines = [line for heads, samples in families.values() for line in (*heads, *samples)]
        return "".join(f"{line}\n" for line in lines).encode()

    def _labels(self, replica: Replica) -> str:
        labels = f'replica="{replica.name}"'
        return f'{labels},version="{replica.version}"' if self._version_label else labels


def _add(families: dict[str, tuple[list[str], list[str]]], text: str, labels: str) -> None:
    """Adds a page's families to those of others; the words and type of a family are taken from the first.

    Not read by prometheus_client, whose parser takes 26 ms for vLLM's page.
    """
    known = set(families)
    family = ""
    for line in text.splitlines():
        if line.startswith("#"):
            if found := _FAMILY.match(line):
                family = found[1]
                heads, _ = families.setdefault(family, ([], []))
                if family not in known:
                    heads.append(line)
        elif found := _SAMPLE.match(line):
            name, rest = found[1], line[found.end() :]
            if not family or not name.startswith(family):  # one without words or type
                family = name
            _, samples = families.setdefault(family, ([], []))
            between = "" if rest.startswith("}") else ","
            samples.append(f"{name}{{{labels}{between}{rest}" if found[2] else f"{name}{{{labels}}}{rest}")


def _fetched(replica: Replica) -> str | None:
    """A replica's page; None if it gives none in time."""
    address = urlsplit(replica.url)
    deadline = time.monotonic() + _FETCH_S
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=_FETCH_S)
    try:
        headers = {"Host": address.netloc, "Authorization": f"Bearer {replica.token}", "Connection": "close"}
        connection.request("GET", _PAGE, headers=headers)
        response = connection.getresponse()
        pieces, size = [], 0
        while piece := response.read1(2**16):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_BYTES or time.monotonic() > deadline:
                return None
        return b"".join(pieces).decode(errors="replace") if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()

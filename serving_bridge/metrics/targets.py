"""Where a process can be scraped, as a file that Prometheus' file_sd reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from learner_jax.runtime import write_whole


def write_target(path: Path, address: str, labels: Mapping[str, str], *, pages: Sequence[str] = ("/metrics",)) -> None:
    """Writes a process's file, whole: one target for each of its pages.

    Further pages have a label `weir_page`: targets of the same labels would share their series `up`.

    Args:
      address: host:port.
      labels: of every series that is scraped there.

    Raises:
      OSError: the file can't be written.
    """
    targets = [{"targets": [address], "labels": {"__metrics_path__": page, **_page(page), **labels}} for page in pages]
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(targets, indent=1).encode() + b"\n")


def _page(page: str) -> dict[str, str]:
    return {} if page == "/metrics" else {"weir_page": page.strip("/")}

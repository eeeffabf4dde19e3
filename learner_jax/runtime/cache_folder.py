"""Where what can be made again is kept.

Not platformdirs: it goes by this process's variables alone, and a server's cache lies where the server's say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Weir's folder below XDG_CACHE_HOME or ~/.cache, of the process that has these variables."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weir"

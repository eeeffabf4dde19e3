"""JAX's persistent compilation cache, where only this user writes and only machines of one kind read.

JAX runs what it finds there as machine code. A folder that others can write to is therefore not used, and neither is a
program that was compiled for another kind of CPU.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from learner_jax.runtime import cache_folder, printable

_MAX_BYTES = 4 << 30
#: programs that compile in less time are compiled each time
_LEAST_S = 0.2
_OF_A_KIND = ("model name", "flags", "CPU implementer", "CPU part", "Features")


def keep_compiled(
    say: Callable[[str], None], environment: Mapping[str, str] = os.environ, *, least_s: float = _LEAST_S
) -> Path | None:
    """Has this process read and write compiled programs in the user's cache folder; call it before anything compiles.

    The folder holds at most 4 GiB; the programs that were not used for longest are deleted. JAX_COMPILATION_CACHE_DIR
    names another folder, and is left as it is.

    Args:
      say: told why there is no cache.

    Returns:
      The folder; None if there is none.
    """
    if named := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return Path(named)
    folder = cache_folder(environment) / "compiled" / kind_of_machine()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _against(folder)
    except OSError as error:
        reason = str(error)
    if reason:
        say(f"compiled programs are not kept: {reason}")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_s)
    return folder


def kind_of_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Names the kind of this machine's CPU, for whose instructions XLA compiles."""
    try:
        lines = cpuinfo.read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    facts = [line for line in lines if line.partition(":")[0].strip() in _OF_A_KIND] or [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(os.fsencode(chr(10).join(facts))).hexdigest()[:16]}"


def _against(folder: Path) -> str:
    """Why what lies in a folder can't be trusted; empty if it can."""
    for path in (folder, folder.parent):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return (
                f"{printable(path)} must be a folder of this user's that others can't write to; "
                "delete it, or name another with JAX_COMPILATION_CACHE_DIR"
            )
    return ""

"""Looks at everything that can be known before a command starts, together and within seconds, and tells it all at once.

What is looked at, and how, stands in `serving_bridge.checks`; which command looks at what, in `start_checks`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.schema import Config
from learner_jax.runtime import WeirError, printable
from serving_bridge.checks import Finding, Result, run_checks
from tools.assembly.paths import RunPaths
from tools.assembly.start_checks import Part, checks_of, subject_of

#: Bound on all looks together.
LIMIT_S = 60.0
#: tells the processes of a job what was looked at, and when; one that starts again much later looks for itself
_LOOKED = "WEIR_LOOKED_AT"
_GOOD_FOR_S = 600.0


class PreflightError(WeirError, ValueError):
    """Something is certain to fail: each such thing, with the setting and what to change."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        lines = [str(finding) for finding in findings]
        many = f"{len(lines)} things have to be changed before this can start:\n  " + "\n  ".join(lines)
        super().__init__(many if len(lines) > 1 else lines[0])
        self.can_heal = all(finding.may_heal for finding in findings)


def preflight(part: Part, config: Config, paths: RunPaths, *, model_dir: Path | None = None) -> None:
    """Looks at what this command needs; prints warnings to stderr.

    A process that a job starts does not repeat what the job has just looked at (`looked`).

    Args:
      model_dir: the folder to look at, if it is not the one that the run begins from.

    Raises:
      PreflightError: all that is certain to fail.
    """
    if model_dir is None and _was_just_looked_at(paths):
        return
    results = look(part, config, paths, model_dir=model_dir)
    findings = [finding for result in results for finding in result.findings]
    for finding in findings:
        if finding.severity == "warning":
            print(f"warning: {printable(finding)}", file=sys.stderr)
    if errors := [finding for finding in findings if finding.severity == "error"]:
        raise PreflightError(errors)


def looked(paths: RunPaths) -> None:
    """Spares the processes that this one starts the look that it has just made, while the run's file stays as it is."""
    os.environ[_LOOKED] = f"{int(time.time())} {_fingerprint(paths)}"


def _was_just_looked_at(paths: RunPaths) -> bool:
    at, _, fingerprint = os.environ.get(_LOOKED, "").partition(" ")
    if not at.isdigit() or not 0 <= time.time() - int(at) < _GOOD_FOR_S:
        return False
    return fingerprint == _fingerprint(paths)


def _fingerprint(paths: RunPaths) -> str:
    """Of the file that the processes of a run read, and of its place."""
    text = paths.config.read_bytes() if paths.config.is_file() else b""
    return hashlib.sha256(os.fsencode(paths.config) + b"\0" + text).hexdigest()


def look(part: Part, config: Config, paths: RunPaths, *, model_dir: Path | None = None) -> list[Result]:
    """Runs the checks of a command side by side."""
    with subject_of(config, paths, model_dir) as subject:
        return run_checks(list(checks_of(part, subject)), limit_s=LIMIT_S, own=_is_own)


def _is_own(error: BaseException) -> bool:
    return isinstance(error, WeirError | OSError)

"""Builds what the gateway falls back on, from [fallback]."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import WeirError
from serving_bridge.access import Keys
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.settings import FallbackSettings
from tools.assembly.build import build_keys, build_registry
from tools.assembly.paths import RunPaths, run_paths
from tools.assembly.recorded_sessions import FALLBACK

if TYPE_CHECKING:
    from serving_bridge.fallback import Webhook
    from serving_bridge.gateway import Fallback


class FallbackError(WeirError, ValueError):
    """[fallback] names what is not there."""

    can_heal = False


@contextmanager
def fallback_of(config: Config, paths: RunPaths, name: str) -> Iterator[Fallback | None]:
    """What a process of the gateway falls back on; None where [fallback] has nothing to do.

    Args:
      name: of the process.

    Raises:
      FallbackError, CalibrationError, TaskError: the settings name what can't be used.
      AuditError: the log can't be gone on with.
    """
    settings = config.fallback
    if not settings.is_on:
        yield None
        return
    # Here, since commands without a gateway import this file too.
    from serving_bridge.confidence import read_calibration
    from serving_bridge.fallback import Library, Records
    from serving_bridge.gateway import Fallback
    from serving_bridge.safety import Checker, Stage

    checker = Checker(config.safety)

    def redact(text: str) -> str | None:
        decision = checker.check(text, Stage.TRAINING_DATA)
        return decision.redacted if decision.passes else None

    calibration = read_calibration(Path(settings.calibration)) if settings.calibration else None
    library = Library(settings) if settings.corpora else None
    webhook, previous = _webhook(settings), _previous(settings)
    records = Records(paths.directory / FALLBACK, name, sample_share=settings.sample_share, redact=redact)
    try:
        yield Fallback(settings, calibration, library, webhook, records, previous)
    finally:
        records.close()


def _webhook(settings: FallbackSettings) -> Webhook | None:
    if not settings.webhook:
        return None
    from serving_bridge.fallback import Webhook

    name = settings.webhook_secret_env
    key = os.environ.get(name, "") if name else ""
    if name and len(key) < 16:
        raise FallbackError(f"fallback.webhook_secret_env names {name}, which holds no key of 16 characters or more")
    return Webhook(settings.webhook, key=key.encode(), timeout_s=settings.webhook_timeout_s)


def _previous(settings: FallbackSettings) -> tuple[ReplicaRegistry, Keys] | None:
    if not settings.previous_run:
        return None
    path = Path(settings.previous_run) / "config.toml"
    if not path.is_file():
        raise FallbackError(f"fallback.previous_run {settings.previous_run!r} is no run's directory: no config.toml")
    config = load_config(str(path), ())
    paths = run_paths(config)
    return build_registry(paths), build_keys(config, paths)

"""Which places in object storage a command looks at before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from configs.schema import Config
from serving_bridge.checks import Check, Finding, storage_findings
from serving_bridge.storage import StorageTimeouts
from tools.assembly.paths import RunPaths

_GIVE_UP_S = 10.0
#: Commands that open what a setting says may be in object storage.
_OPENED_BY: Mapping[str, tuple[str, ...]] = {
    "store.weights": ("train", "learner", "serve"),
    "store.blobs": ("train", "learner", "rollout"),
    "store.checkpoints": ("train", "learner"),
}


def storage_checks(part: str, config: Config, paths: RunPaths) -> Iterator[Check]:
    """A check of each place that the command opens."""
    for setting, url in paths.in_storage.items():
        if part in _OPENED_BY[setting]:
            yield Check(f"object storage: {setting}", setting, partial(_findings, config, setting, url))


def _findings(config: Config, setting: str, url: str) -> Iterable[Finding]:
    timeouts = StorageTimeouts(give_up_s=min(_GIVE_UP_S, config.store.storage_timeout_s))
    return storage_findings(setting, url, timeouts=timeouts)

"""Roles whose program the run's user gives, on Kubernetes: pods that keep their name, their number and a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Where a pod has its own volume.
OWN_FOLDER = "/var/lib/weir"
_VOLUME = "own"
#: Label of a pod with its number; Kubernetes sets it from 1.28 on.
_INDEX = "apps.kubernetes.io/pod-index"
_TOLD = {"{address}": "$(POD_IP)", "{index}": "$(WEIR_INDEX)"}


def own_command(command: Sequence[str]) -> list[str]:
    """The role's command, with what a pod knows of itself in place of {address} and {index}."""
    parts = list(command)
    for name, value in _TOLD.items():
        parts = [part.replace(name, value) for part in parts]
    return parts


def with_number_and_volume(container: dict[str, Any]) -> dict[str, Any]:
    """The container with the variable WEIR_INDEX, and with the pod's own volume at `OWN_FOLDER`."""
    index = {"fieldRef": {"fieldPath": f"metadata.labels['{_INDEX}']"}}
    return container | {
        "env": [*container["env"], {"name": "WEIR_INDEX", "valueFrom": index}],
        "volumeMounts": [*container["volumeMounts"], {"name": _VOLUME, "mountPath": OWN_FOLDER}],
    }


def stateful_set(
    name: str, labels: dict[str, str], pod: dict[str, Any], *, hosts: int, storage_gib: int
) -> dict[str, Any]:
    """Specification of a StatefulSet whose pods the Service of the same name names."""
    asked = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{storage_gib}Gi"}}}
    return {
        "replicas": hosts,
        "serviceName": name,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": labels},
        "template": pod,
        "volumeClaimTemplates": [{"metadata": {"name": _VOLUME}, "spec": asked}],
    }

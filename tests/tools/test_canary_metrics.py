"""What the canary's controller serves to Prometheus, and the file by which it is found."""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.canary import CanaryError
from serving_bridge.metrics import ExporterError
from tools.canary_metrics import served


def asked(**changes: Any) -> argparse.Namespace:
    given = {"name": "canary", "namespace": "acme", "metrics_host": "127.0.0.1", "metrics_port": 0, "no_metrics": False}
    return argparse.Namespace(**(given | changes))


def test_what_it_is_told_is_served_at_the_address_that_its_file_names(tmp_path: Path) -> None:
    with served(tmp_path, asked()) as metrics:
        (file,) = (tmp_path / "telemetry").iterdir()
        (target,) = json.loads(file.read_text())
        assert target["labels"]["weir_process"] == "canary-acme"
        metrics.standing(open=1, leads=1, phase="running", step=2, looked_s=17.0)
        metrics.event("look", look=1)
        metrics.event("rollout", phase="running")
        metrics.event("rollout", phase="rolled_back")
        with urllib.request.urlopen(f"http://{target['targets'][0]}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        with (
            pytest.raises(ExporterError, match="--metrics-port"),
            served(tmp_path, asked(metrics_port=int(target["targets"][0].rpartition(":")[2]), name="other")),
        ):
            pass
    for line in (
        "weir_canary_open 1.0",
        'weir_canary_phase{phase="running"} 1.0',
        "weir_canary_step 2.0",
        "weir_canary_looks_total 1.0",
        "weir_canary_rollbacks_total 1.0",
        "weir_canary_promotions_total 0.0",
    ):
        assert line in lines
    assert list((tmp_path / "telemetry").iterdir()) == [], "who ended well is nobody's to scrape"


def test_no_metrics_and_no_plain_name(tmp_path: Path) -> None:
    with served(tmp_path, asked(no_metrics=True)) as metrics:
        metrics.event("look")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CanaryError, match="expected letters"), served(tmp_path, asked(name="../x")):
        pass

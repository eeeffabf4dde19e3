"""A real Prometheus watches a real job: all processes, recorded rules, no alert in health, one when a worker dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving_bridge.processes import free_port
from tests.conftest import REPOSITORY
from tests.support.whole_jobs import SMALL_DEMO, environment, processes_of, steps, train_command, wait_for

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus (Debian) is not installed"),
]

RULES = REPOSITORY / "configs" / "monitoring" / "rules.yml"
WATCHED_S = 60.0
#: What a run without failures has within a minute; the others need a failed verdict or the like for a value.
RECORDED = (
    "weir_run:steps:rate5m",
    "weir_run:trained_tokens:rate5m",
    "weir_run:sampled_tokens:rate5m",
    "weir_run:learner_idle:share5m",
    "weir_run:rollout_idle:share5m",
    "weir_run:zero_variance_groups:share",
    "weir_run:failed_verdicts:share15m",
    "weir_run:version_lag:versions",
    "weir_run:paused:share5m",
)
VLLM = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total")


class Prometheus:
    """A server's HTTP API."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            return json.load(urllib.request.urlopen(url, timeout=10))["data"]
        except OSError:
            return None

    def values(self, query: str) -> dict[str, float]:
        """Labels as JSON -> value."""
        found = (self.get("query", query=query) or {}).get("result", [])
        return {json.dumps(row["metric"], sort_keys=True): float(row["value"][1]) for row in found}

    def alerts(self) -> set[str]:
        """Names of those that fire."""
        return {row["labels"]["alertname"] for row in self.get("alerts")["alerts"] if row["state"] == "firing"}


@contextmanager
def prometheus(folder: Path, run: Path) -> Iterator[Prometheus]:
    """A server that scrapes the run's processes every five seconds."""
    config = {
        "global": {"scrape_interval": "5s", "scrape_timeout": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "weir",
                "file_sd_configs": [{"files": [f"{run}/telemetry/*.json"], "refresh_interval": "1s"}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    served = Prometheus(free_port())
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={served.address}"], stdout=log, stderr=log)
    try:
        wait_for(lambda: served.get("alerts"), timeout_s=60, what="an answer of Prometheus")
        yield served
    finally:
        process.terminate()
        process.wait(60)


def test_a_real_prometheus_watches_a_real_job(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    with output.open("wb") as log:
        command = train_command("demo.toml", *SMALL_DEMO, f"run.directory={run}", "learner.steps=1000")
        job = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, env=environment())
    try:
        wait_for(lambda: len(steps(run)) >= 5 or job.poll() is not None, timeout_s=600, what="a few steps")
        assert job.poll() is None, output.read_text()
        with prometheus(tmp_path, run) as served:
            time.sleep(WATCHED_S)
            up = served.values('sum by (weir_role) (up{weir_run="demo"})')
            assert up == {
                '{"weir_role": "fleet"}': 2.0,
                '{"weir_role": "learner"}': 1.0,
                '{"weir_role": "rollout"}': 1.0,
                '{"weir_role": "train"}': 1.0,
            }
            for name in RECORDED:
                assert served.values(name), name
            for name in VLLM:
                assert served.values(f'{name}{{replica!=""}}'), name
            assert served.values("weir_learner_step").popitem()[1] >= 5
            assert served.values("weir_queue_up").popitem()[1] == 1
            assert served.alerts() == set()
            (worker,) = (p for p, c in processes_of(run).items() if "tools.rollout" in c and "guard.py" not in c)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: "WeirProcessRestarted" in served.alerts(), timeout_s=120, what="an alert")
    finally:
        job.terminate()
        job.wait(300)
        job.kill()
    wait_for(lambda: not processes_of(run), timeout_s=60, what="the end of all processes")
    assert not list(run.glob("telemetry/*.json")), output.read_text()

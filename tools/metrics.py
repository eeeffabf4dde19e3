"""Lists the metrics that a run's processes serve to Prometheus: name, type, unit, labels and meaning.

    python -m tools.metrics                 (all of them)
    python -m tools.metrics weir_learner    (those whose names begin so)
    python -m tools.metrics --json          (for programs)

docs/metrics.md says how they are scraped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from learner_jax.runtime import WeirError
from serving_bridge.metrics import METRICS, Metric
from tools.assembly import clear_errors
from tools.command_line import command_parser, print_page

_INTRODUCTION = """\
# Metrics

Every process of a run serves `/metrics` for Prometheus. By default it listens on loopback, at any free port. It
writes its address to `telemetry/` in the run's directory, where Prometheus finds all processes:

```yaml
scrape_configs:
  - job_name: weir
    file_sd_configs:
      - files: [/path/to/runs/*/telemetry/*.json]
rule_files: [/path/to/weir/configs/monitoring/rules.yml]
```

- The canary's controller writes its address to `telemetry/` in the registry's folder: add that to the files. Its label
  `weir_run` is the namespace.
- `telemetry.host` and `telemetry.port` set other addresses; `telemetry.metrics = false` serves none.
- Whoever reaches an address can read the figures. They hold no text of users or models.
- Prometheus must run as the user of the run, who alone can read its directory.
- Every series has the labels `weir_run`, `weir_role` and `weir_process`.
- A process that was killed keeps its file, so that `up` is 0. One that ended well takes it away.
- A fleet also serves `/replicas`: vLLM's own metrics of each replica, fetched with its token, with the label `replica`.
  That page is a target of its own: its series have `weir_page="replicas"`. It is at most five seconds old.
- `telemetry.version_label = true` adds the label `version` to them, which makes new series at every version.
- `process_...` are prometheus_client's own: CPU time, memory, open files and start of a process.
- A gauge whose value was not measured is absent. Counters begin at 0 with each start of a process.
- Label values are plain names, at most 256 of a metric. Others are left out; `weir_labels_refused_total` counts them.

One answer's way through all processes, as a trace: [traces.md](traces.md).

This file is written from the table: `python -m tools.metrics --markdown > docs/metrics.md`.
"""
_HEADINGS = {
    "every": "Every process",
    "learner": "Learner",
    "rollout": "Rollout workers",
    "fleet": "Fleets",
    "gateway": "Gateways",
    "train": "The run, served by the process that starts the others",
    "canary": "Canary controllers",
}


def by_role() -> dict[str, list[Metric]]:
    """Role -> its own metrics; those of all of them under "every"."""
    shared = set.intersection(*(set(metrics) for metrics in METRICS.values()))
    every = [metric for metric in METRICS["learner"] if metric in shared]
    return {"every": every} | {
        role: [metric for metric in metrics if metric not in shared] for role, metrics in METRICS.items()
    }


def markdown() -> str:
    """The page docs/metrics.md."""
    lines = [_INTRODUCTION]
    for role, metrics in by_role().items():
        lines += [f"## {_HEADINGS[role]}", "", "| metric | type | unit | labels | meaning |", "|---|---|---|---|---|"]
        lines += [f"| `{m.name}` | {_kind(m)} | {m.unit} | {', '.join(m.labels)} | {m.meaning} |" for m in metrics]
        lines.append("")
    return "\n".join(lines)


def _kind(metric: Metric) -> str:
    return "counter" if metric.kind == "counter" else "gauge"


def _plain(metric: Metric) -> Iterator[str]:
    labels = f"{{{', '.join(metric.labels)}}}" if metric.labels else ""
    yield f"{metric.name}{labels}   {_kind(metric)}, {metric.unit}"
    yield f"    {metric.meaning}"


def shown(arguments: argparse.Namespace) -> str:
    """What is printed.

    Raises:
      WeirError: no metric's name begins so.
    """
    if arguments.markdown:
        return markdown()
    found = [m for metrics in by_role().values() for m in metrics if m.name.startswith(arguments.prefix)]
    if not found:
        raise WeirError(f"no metric's name begins with {arguments.prefix!a}; all are listed without it")
    if arguments.json:
        rows = [
            {"name": m.name, "type": _kind(m), "unit": m.unit, "labels": m.labels, "meaning": m.meaning} for m in found
        ]
        return json.dumps(rows, indent=1)
    return "\n".join(line for metric in found for line in _plain(metric))


def main() -> None:
    parser = command_parser("metrics", __doc__)
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="beginning of the names")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of objects")
    form.add_argument("--markdown", action="store_true", help="print the page docs/metrics.md, always whole")
    arguments = parser.parse_args()
    with clear_errors():
        text = shown(arguments)
    print_page(text)


if __name__ == "__main__":
    main()
